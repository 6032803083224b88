//! What the processor claims, and the attacks that it claims to refuse.

mod deliveries;
mod world;
