//! Both ends of the second path against each other in memory, and against those who should not get through.

mod certificates;
mod common;
