//! Long runs over much. What runs real programs side by side is the command `chipbound-soak` alone; the crash run is here, so that a
//! small one is among the command's tests.

pub mod crash;
mod dice;
pub mod simulation;

/// What a step gives, or why it could not be made.
pub type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A failure in words.
pub fn failed(why: impl Into<String>) -> Box<dyn std::error::Error + Send + Sync> {
    why.into().into()
}
