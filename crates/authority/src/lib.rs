//! chipbound-authority
