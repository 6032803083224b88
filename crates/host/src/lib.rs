//! What the daemons ask of their machine.
