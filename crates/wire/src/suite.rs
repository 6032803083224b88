//! What can be chosen: suites, key modes, formats, classes of key store, profiles.

use crate::error::{Code, Refusal, Result};
use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! choices {
    ($(#[$doc:meta])* $name:ident ($what:literal) { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[cbor(index_only)]
        pub enum $name { $($(#[$vdoc])* #[n($number)] #[serde(rename = $text)] $variant,)+ }

        impl $name {
            /// Every value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable text form.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// The stable number on the wire.
            #[must_use]
            pub fn number(self) -> u8 {
                match self { $(Self::$variant => $number),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Refusal;
            fn from_str(text: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|c| c.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|c| c.as_str()).collect();
                    Refusal::new(Code::NotSupported, format!(concat!("{:?} is no ", $what, "; there are: {}"), text, known.join(", ")))
                })
            }
        }
    };
}

choices! {
    /// A key encapsulation mechanism of the key wrap (HPKE, RFC 9180).
    Kem("key encapsulation mechanism") {
        /// X-Wing: ML-KEM-768 and X25519 (draft-connolly-cfrg-xwing-kem); HPKE id 0x647a.
        XWing = 1, "x-wing";
        /// DHKEM(P-256, HKDF-SHA256); HPKE id 0x0010. For key stores that hold only P-256 keys; not post-quantum.
        DhkemP256 = 2, "dhkem-p256";
    }
}

choices! {
    /// The cipher of pages and chunks.
    Aead("AEAD") {
        /// AES-256-GCM (RFC 5116).
        Aes256Gcm = 1, "aes-256-gcm";
        /// ChaCha20-Poly1305 (RFC 8439).
        ChaCha20Poly1305 = 2, "chacha20-poly1305";
    }
}

choices! {
    /// How the content key relates to the processor (source \[49\] and \[61\]).
    KeyMode("key mode") {
        /// Exported from the HPKE context to this processor's key, fresh for each delivery (claim 4).
        Direct = 1, "direct";
        /// One key for a release, wrapped to each processor (claim 5).
        Common = 2, "common";
    }
}

choices! {
    /// What the plaintext is.
    Format("format") {
        /// Bytes, sealed in chunks of 64 KiB (source \[63\]).
        Data = 1, "data";
        /// A native Linux x86-64 ELF program, executable segments sealed page by page (source \[49\]\[65\]).
        ElfX8664 = 2, "elf-x86-64";
    }
}

choices! {
    /// What of a program is sealed.
    Profile("protection profile") {
        /// Nothing but what the format seals anyway; for data.
        Whole = 1, "whole";
        /// Executable segments: the source's own profile.
        Code = 2, "code";
        /// Read-only segments too: constants, strings, unwind tables; not what is written to at run time.
        CodeAndConstants = 3, "code+constants";
    }
}

choices! {
    /// What happens to loader variables (`LD_*`, `GLIBC_TUNABLES`) when a package starts.
    LoaderVariables("loader variable policy") {
        /// They are neutralised before the dynamic linker sees them.
        Forbid = 1, "forbid";
        /// They act as for a plain program.
        Allow = 2, "allow";
    }
}

choices! {
    /// The way in which a program's code gets into its process.
    Mapping("way of mapping") {
        /// Mapped privately from one sealed memory file that all instances share.
        SealedMemfd = 1, "sealed-memfd";
        /// Copied into anonymous memory, in huge pages where the kernel has them.
        Anonymous = 2, "anonymous";
        /// The client executes a memory file that its user may not read (mode 0111).
        MemfdExec = 3, "memfd-exec";
    }
}

choices! {
    /// The class of key store, as certified by the authority.
    Class("class of key store") {
        /// Keys in a sealed file: protected at rest and from other users, not from root.
        Software = 1, "software";
    }
}

/// A suite of the key wrap and the cipher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Encode, Decode, Serialize, Deserialize)]
#[cbor(array)]
pub struct Suite {
    /// Wraps the content key to the processor's certified sealing key.
    #[n(0)]
    pub kem: Kem,
    /// Seals pages and chunks.
    #[n(1)]
    pub aead: Aead,
}

impl Suite {
    /// Two bytes that name the suite in HPKE's info: the KEM's and the AEAD's number.
    #[must_use]
    pub fn bytes(self) -> [u8; 2] {
        [self.kem.number(), self.aead.number()]
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.kem, self.aead)
    }
}

impl FromStr for Suite {
    type Err = Refusal;
    /// Reads `x-wing+aes-256-gcm`.
    fn from_str(text: &str) -> Result<Self> {
        let (kem, aead) = text
            .split_once('+')
            .ok_or_else(|| Refusal::new(Code::Malformed, format!("{text:?} is not a suite such as x-wing+aes-256-gcm")))?;
        Ok(Self { kem: kem.parse()?, aead: aead.parse()? })
    }
}

choices! {
    /// What a certificate entitles its holder to. Every certificate names exactly one role, as its one extended key usage.
    Role("role") {
        /// The identity of a tamper-resistant processor.
        Processor = 1, "processor";
        /// The server's end of the second path.
        ServerSecondPath = 2, "server-second-path";
        /// The server's statements: confirmations, terms, seals, release tokens (the source's K's).
        ServerStatement = 3, "server-statement";
        /// The server's receipts.
        ServerReceipt = 4, "server-receipt";
        /// A vendor, who signs release manifests.
        Vendor = 5, "vendor";
    }
}
