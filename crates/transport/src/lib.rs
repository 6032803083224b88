//! chipbound-transport
