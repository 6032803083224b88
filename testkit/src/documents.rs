//! Sample documents that belong together; change the fields that a test is about.

use chipbound_wire::bounded::{List, Text};
use chipbound_wire::documents::{Acknowledgement, Confirmation, LogPlace, Manifest, Receipt, Sale, TaxLine, Terms};
use chipbound_wire::suite::{Aead, Class, Format, Kem, KeyMode, LoaderVariables, Profile, Suite};
use chipbound_wire::{AccountId, Digest, KeyId, OrderId, ProgramId, Time};

/// The order of the samples.
pub const ORDER: OrderId = OrderId([0x0d; 16]);
/// The buyer of the samples.
pub const ACCOUNT: AccountId = AccountId([0xac; 16]);
/// The suite of the samples.
pub const SUITE: Suite = Suite { kem: Kem::XWing, aead: Aead::Aes256Gcm };

/// Version 1.0 of the vendor's program `tool`, a data file with this plaintext, for software processors in both key modes.
#[must_use]
pub fn manifest(vendor: &KeyId, plaintext: &[u8]) -> Manifest {
    Manifest {
        program: ProgramId::new(vendor, "tool").expect("a good name"),
        version: text("1.0"),
        sequence: 1,
        format: Format::Data,
        plain_root: Digest::of(plaintext),
        plain_size: plaintext.len() as u64,
        profile: Profile::Whole,
        loader_variables: LoaderVariables::Forbid,
        classes: List::new(vec![Class::Software]).expect("one class"),
        open_to_file: true,
        minimum_sequence: 1,
        key_modes: List::new(vec![KeyMode::Direct, KeyMode::Common]).expect("two modes"),
        readers: None,
    }
}

/// An order of the manifest with these signed bytes, made `now` and open for an hour.
#[must_use]
pub fn confirmation(manifest: &Manifest, signed_manifest: &[u8], processor: KeyId, now: Time) -> Confirmation {
    Confirmation {
        order: ORDER,
        account: ACCOUNT,
        program: manifest.program.clone(),
        version: manifest.version.clone(),
        manifest: Digest::of(signed_manifest),
        processor,
        price: "12.50 EUR".parse().expect("an amount"),
        issued_at: now,
        expires_at: now.after(3600),
        conditions: text("for this processor only"),
        redownload_until: now.after(365 * 24 * 3600),
    }
}

/// Terms for that order in [`SUITE`] and direct mode.
#[must_use]
pub fn terms(confirmation: &Confirmation, format: Format) -> Terms {
    Terms {
        order: confirmation.order,
        account: confirmation.account,
        processor: confirmation.processor,
        manifest: confirmation.manifest,
        suite: SUITE,
        format,
        key_mode: KeyMode::Direct,
        package_id: Digest([0x11; 32]),
        release_commitment: Digest([0x22; 32]),
        key_commitment: Digest([0x33; 32]),
    }
}

/// The processor's word on a delivery with these signed terms and this signed seal.
#[must_use]
pub fn acknowledgement(order: OrderId, signed_terms: &[u8], signed_seal: &[u8], at: Time) -> Acknowledgement {
    Acknowledgement { order, terms: Digest::of(signed_terms), seal: Digest::of(signed_seal), at }
}

/// Receipt number 1 for that order, captured `at`.
#[must_use]
pub fn receipt(confirmation: &Confirmation, at: Time) -> Receipt {
    Receipt {
        number: 1,
        order: confirmation.order,
        account: confirmation.account,
        program: confirmation.program.clone(),
        version: confirmation.version.clone(),
        manifest: confirmation.manifest,
        processor: confirmation.processor,
        amount: confirmation.price,
        payment: text("payment 1"),
        issued_at: at,
        redownload_until: confirmation.redownload_until,
        sale: Some(Sale {
            seller: AccountId([0x5e; 16]),
            name: text("The shop"),
            taxes: List::new(vec![TaxLine { name: text("VAT"), rate: 1900, minor: 200 }]).expect("few"),
            conditions: confirmation.conditions.clone(),
        }),
        log: Some(LogPlace { origin: text("a/log"), index: 0, salt: Digest([0x44; 32]) }),
    }
}

fn text<const MAX: usize>(text: &str) -> Text<MAX> {
    Text::new(text).expect("a short text")
}
