//! chipbound-server
