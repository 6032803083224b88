//! chipbound-testkit
