//! The certificate authority of chipbound: enrols, issues, renews and revokes (source \[33\]-\[35\]).

pub mod issuing;
