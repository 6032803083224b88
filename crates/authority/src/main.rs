//! `chipbound-authority`.
fn main() {}
