//! chipbound-server
fn main() {}
