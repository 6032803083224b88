//! chipbound-session
