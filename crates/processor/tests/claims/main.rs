//! What the processor claims, and the attacks that it claims to refuse.

mod client;
mod confining;
mod daemon;
mod deliveries;
mod enrolling;
mod giving;
mod kept;
mod packages;
mod resuming;
mod world;
