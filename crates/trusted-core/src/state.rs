//! What the processor remembers, as a value: the seals that it compared (step 1008), the tokens that released them (step 1010), and
//! the smallest sequence number that each program's vendor still allows.
//!
//! On disk it is a chain of sealed frames, each four bytes of length (big endian) and one blob of `sealing::at_rest` whose context
//! names the digest of the frame before it: a frame cannot be changed, moved, left out in the middle or taken from another
//! chain. A frame that a crash cut short at the end is dropped. Leaving out whole frames at the end cannot be noticed without a
//! counter in hardware: packages of those frames are then refused as never received, and minimums that they raised are low again.

use crate::gate::SharedSecrets;
use chipbound_sealing::at_rest;
use chipbound_wire::bounded::{Bytes, decode, encode};
use chipbound_wire::certificate::GoodSignatures;
use chipbound_wire::documents::{Manifest, Seal, Terms};
use chipbound_wire::signed::Verified;
use chipbound_wire::{Code, Digest, KeyId, OrderId, ProgramId, Random, Refusal, Result, Time};
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet};

/// Deliveries remembered at most (about 60 MiB on disk). Beyond it the oldest that were never released are forgotten.
pub const MAX_RECORDS: usize = 65_536;

/// Bytes of one sealed frame at most: a snapshot of [`MAX_RECORDS`] records and as many programs.
const MAX_FRAME: usize = 64 * 1024 * 1024;

/// The context under which frames are sealed, followed by the digest of the frame before in hexadecimal.
const CONTEXT: &str = "chipbound/1 processor state after ";

/// A delivery that was received, opened and compared whole with the vendor's root.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Record {
    /// Digest of the signed seal; the record's name.
    #[n(0)]
    pub seal: Digest,
    /// Digest of the signed terms.
    #[n(1)]
    pub terms: Digest,
    /// The order.
    #[n(2)]
    pub order: OrderId,
    /// Digest of the vendor's signed manifest.
    #[n(3)]
    pub manifest: Digest,
    /// The commitment to the content key, as compared.
    #[n(4)]
    pub key_commitment: Digest,
    /// The key that signed terms and seal, as the exchange named it; the token must be by the same.
    #[n(5)]
    pub statement_key: KeyId,
    /// Digest of the certified sealing key to which the main wrap goes: that key is kept while the record is.
    #[n(6)]
    pub sealing_key: Digest,
    /// When it was compared: the time at which the documents' certificates are verified from now on.
    #[n(7)]
    pub at: Time,
    /// The release, once the token came.
    #[n(8)]
    pub release: Option<Release>,
}

/// What released a delivery.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Release {
    /// Digest of the signed token.
    #[n(0)]
    pub token: Digest,
    /// When it was verified.
    #[n(1)]
    pub at: Time,
    /// The public-key work that was done by then.
    #[n(2)]
    pub settled: Option<Settled>,
}

/// Public-key work on one delivery that gives the same result whenever it is done, so that no opening does it again: which signatures
/// are good, and what decapsulation gives. Everything that depends on time, on what was revoked or on the package is done each time.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(map)]
pub struct Settled {
    /// The signatures of its documents and of their certificates.
    #[n(0)]
    pub signatures: GoodSignatures,
    /// The shared secrets of its token and its wrap, sealed under the key-encryption key.
    #[n(1)]
    pub secrets: Bytes<MAX_SECRETS>,
}

impl Settled {
    /// What is known of the delivery with this seal after its release.
    pub(crate) fn of(
        seal: &Digest,
        signatures: GoodSignatures,
        secrets: &SharedSecrets,
        kek: &[u8; 32],
        random: &mut dyn Random,
    ) -> Result<Self> {
        let sealed = at_rest::seal(kek, &secrets_of(seal), &secrets.to_bytes(), random);
        Ok(Self { signatures, secrets: Bytes::new(sealed)? })
    }

    /// The shared secrets of the delivery with this seal; [`Code::Unsealable`] with another seal or key.
    pub fn open_secrets(&self, seal: &Digest, kek: &[u8; 32]) -> Result<SharedSecrets> {
        at_rest::open(kek, &secrets_of(seal), &self.secrets).map(|bytes| SharedSecrets::of_bytes(&bytes))
    }
}

/// Bytes of the sealed secrets of one delivery at most.
const MAX_SECRETS: usize = 512;

fn secrets_of(seal: &Digest) -> String {
    format!("chipbound/1 processor secrets of {seal}")
}

impl Record {
    /// The record of a delivery whose plaintext was compared at the time `at`. `sealing_key` is the public half of the certified
    /// sealing key of the suite's mechanism.
    #[must_use]
    pub fn of(terms: &Verified<Terms>, seal: &Verified<Seal>, sealing_key: &[u8], at: Time) -> Self {
        Self {
            seal: seal.digest(),
            terms: terms.digest(),
            order: terms.order,
            manifest: terms.manifest,
            key_commitment: terms.key_commitment,
            statement_key: terms.signer().key_id(),
            sealing_key: Digest::of(sealing_key),
            at,
            release: None,
        }
    }
}

/// One change of the state.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Step {
    /// A delivery was compared; its manifest may raise the program's minimum.
    #[n(0)]
    Compared {
        /// The record.
        #[n(0)]
        record: Box<Record>,
        /// The program.
        #[n(1)]
        program: ProgramId,
        /// The manifest's minimum sequence number.
        #[n(2)]
        minimum: u64,
    },
    /// A delivery was released.
    #[n(1)]
    Released {
        /// The record's seal.
        #[n(0)]
        seal: Digest,
        /// By what.
        #[n(1)]
        release: Release,
    },
    /// Everything at once: the first frame after a compaction.
    #[n(2)]
    Snapshot {
        /// All records.
        #[n(0)]
        records: Vec<Record>,
        /// All minimums.
        #[n(1)]
        minimums: Vec<(ProgramId, u64)>,
        /// All orders that were given up; absent: none.
        #[n(2)]
        retired: Option<Vec<OrderId>>,
    },
    /// An order was given up: what was compared and released for it is forgotten, and nothing is compared for it any more.
    #[n(3)]
    Retired {
        /// The order.
        #[n(0)]
        order: OrderId,
    },
}

impl Step {
    /// The step of step 1008.
    #[must_use]
    pub fn compared(record: Record, manifest: &Manifest) -> Self {
        Self::Compared { record: Box::new(record), program: manifest.program.clone(), minimum: manifest.minimum_sequence }
    }
}

/// A step and its sealed frame: write the frame durably at the end of the file, then [`State::commit`].
#[derive(Debug)]
pub struct Prepared {
    step: Step,
    link: Digest,
    next: Digest,
    frame: Vec<u8>,
}

impl Prepared {
    /// The bytes to append.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }
}

/// What opening a package asks of the state, wherever that is kept.
pub trait Memory {
    /// The record of that seal; [`Code::NotReceived`] when this processor never compared it.
    fn record(&self, seal: &Digest) -> Result<Record>;

    /// Refuses a release older than the vendor's minimum with [`Code::SequenceTooOld`].
    fn check_sequence(&self, manifest: &Manifest) -> Result<()>;

    /// Refuses an order that was given up with [`Code::OrderRetired`].
    fn check_order(&self, order: &OrderId) -> Result<()>;

    /// What decapsulation gave when that delivery was released: nothing, where that is not known here.
    fn secrets(&self, _: &Record) -> Result<SharedSecrets> {
        Ok(SharedSecrets::default())
    }
}

impl Memory for State {
    fn record(&self, seal: &Digest) -> Result<Record> {
        self.get(seal).cloned()
    }

    fn check_sequence(&self, manifest: &Manifest) -> Result<()> {
        let minimum = self.minimum(&manifest.program).max(manifest.minimum_sequence);
        if manifest.sequence < minimum {
            let detail = format!(
                "{} {} has sequence number {}, the vendor asks for {minimum}",
                manifest.program, &*manifest.version, manifest.sequence
            );
            return Err(Refusal::new(Code::SequenceTooOld, detail));
        }
        Ok(())
    }

    fn check_order(&self, order: &OrderId) -> Result<()> {
        match self.retired.contains(order) {
            true => Err(Refusal::new(Code::OrderRetired, format!("this processor gave order {order} up"))),
            false => Ok(()),
        }
    }
}

/// What the processor remembers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    records: BTreeMap<Digest, Record>,
    minimums: BTreeMap<ProgramId, u64>,
    /// Orders that were given up.
    retired: BTreeSet<OrderId>,
    link: Digest,
    frames: usize,
}

impl Default for State {
    fn default() -> Self {
        Self { records: BTreeMap::new(), minimums: BTreeMap::new(), retired: BTreeSet::new(), link: Digest([0; 32]), frames: 0 }
    }
}

impl State {
    /// Reads the file's `bytes`. Gives the state and how many bytes of the file hold it; what follows them is a frame that a
    /// crash cut short, to be truncated. A changed, moved or foreign frame is [`Code::Unsealable`].
    pub fn read(kek: &[u8; 32], bytes: &[u8]) -> Result<(Self, usize)> {
        let mut state = Self::default();
        let mut rest = bytes;
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > MAX_FRAME {
                return Err(Refusal::new(Code::Unsealable, "the processor's state holds a frame longer than any it writes"));
            }
            let Some((blob, after)) = after.split_at_checked(length) else { break };
            let plain = at_rest::open(kek, &state.context(), blob)?;
            let next = Digest::of(blob);
            state.apply(decode(&plain)?, next);
            rest = after;
        }
        Ok((state, bytes.len() - rest.len()))
    }

    /// Seals `step` as the next frame without taking it yet. A state that is full of released deliveries refuses another one
    /// with [`Code::TooLarge`]; a release of what was never compared is [`Code::NotReceived`].
    pub fn prepare(&self, step: Step, kek: &[u8; 32], random: &mut dyn Random) -> Result<Prepared> {
        match &step {
            Step::Compared { record, .. } => {
                self.check_order(&record.order)?;
                self.check_room(record)?;
            }
            Step::Retired { .. } if self.retired.len() >= MAX_RECORDS => {
                return Err(Refusal::new(
                    Code::TooLarge,
                    format!("the processor remembers {MAX_RECORDS} orders that it gave up and no more"),
                ));
            }
            Step::Retired { .. } => {}
            Step::Released { seal, .. } => drop(self.get(seal)?),
            Step::Snapshot { .. } => {}
        }
        let blob = at_rest::seal(kek, &self.context(), &encode(&step), random);
        let length = u32::try_from(blob.len()).ok().filter(|l| *l as usize <= MAX_FRAME);
        let length = length.ok_or_else(|| Refusal::new(Code::TooLarge, "the processor's state is larger than its limit"))?;
        let next = Digest::of(&blob);
        Ok(Prepared { step, link: self.link, next, frame: [length.to_be_bytes().as_slice(), &blob].concat() })
    }

    /// Takes a prepared step whose frame is on disk.
    ///
    /// # Panics
    /// When another step was committed since this one was prepared: the caller holds one lock over both.
    pub fn commit(&mut self, prepared: Prepared) {
        assert_eq!(prepared.link, self.link, "steps are committed in the order in which they were prepared");
        self.apply(prepared.step, prepared.next);
    }

    /// The whole state as the one frame of a new file, and the state that follows from it; for a compaction.
    pub fn compact(&self, kek: &[u8; 32], random: &mut dyn Random) -> Result<(Self, Vec<u8>)> {
        let snapshot = Step::Snapshot {
            records: self.records.values().cloned().collect(),
            minimums: self.minimums.iter().map(|(program, minimum)| (program.clone(), *minimum)).collect(),
            retired: Some(self.retired.iter().copied().collect()),
        };
        let mut compacted = Self::default();
        let prepared = compacted.prepare(snapshot, kek, random)?;
        let frame = prepared.frame.clone();
        compacted.commit(prepared);
        Ok((compacted, frame))
    }

    /// Whether the file holds many more frames than there are records, so that a compaction pays.
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        self.frames > 64 + 2 * self.records.len()
    }

    fn get(&self, seal: &Digest) -> Result<&Record> {
        self.records
            .get(seal)
            .ok_or_else(|| Refusal::new(Code::NotReceived, "this processor has no record of having received and compared this package"))
    }

    /// The smallest sequence number of `program` that may still be opened; 0 when nothing is known.
    #[must_use]
    pub fn minimum(&self, program: &ProgramId) -> u64 {
        self.minimums.get(program).copied().unwrap_or(0)
    }

    /// Whether a record still needs the sealing key with this digest of its public half.
    #[must_use]
    pub fn needs(&self, sealing_key: &Digest) -> bool {
        self.records.values().any(|r| r.sealing_key == *sealing_key)
    }

    /// How many deliveries are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn context(&self) -> String {
        format!("{CONTEXT}{}", self.link)
    }

    fn check_room(&self, record: &Record) -> Result<()> {
        if self.records.len() < MAX_RECORDS || self.records.contains_key(&record.seal) || self.oldest_unreleased().is_some() {
            return Ok(());
        }
        Err(Refusal::new(Code::TooLarge, format!("the processor remembers {MAX_RECORDS} released packages and no more")))
    }

    fn oldest_unreleased(&self) -> Option<Digest> {
        self.records.values().filter(|r| r.release.is_none()).min_by_key(|r| r.at).map(|r| r.seal)
    }

    fn apply(&mut self, step: Step, next: Digest) {
        match step {
            Step::Compared { record, program, minimum } => {
                if self.records.len() >= MAX_RECORDS
                    && let Some(oldest) = self.oldest_unreleased()
                {
                    self.records.remove(&oldest);
                }
                self.records.insert(record.seal, *record);
                self.raise(program, minimum);
            }
            Step::Released { seal, release } => {
                if let Some(record) = self.records.get_mut(&seal) {
                    record.release.get_or_insert(release);
                }
            }
            Step::Retired { order } => {
                self.records.retain(|_, record| record.order != order);
                self.retired.insert(order);
            }
            Step::Snapshot { records, minimums, retired } => {
                self.retired = retired.unwrap_or_default().into_iter().collect();
                self.records = records.into_iter().map(|r| (r.seal, r)).collect();
                minimums.into_iter().for_each(|(program, minimum)| self.raise(program, minimum));
            }
        }
        self.link = next;
        self.frames += 1;
    }

    /// A minimum only rises.
    fn raise(&mut self, program: ProgramId, minimum: u64) {
        let known = self.minimums.entry(program).or_insert(0);
        *known = minimum.max(*known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chipbound_testkit::Repeatable;

    const KEK: [u8; 32] = [7; 32];

    fn record(name: u8) -> Record {
        let digest = |kind: u8| Digest([kind, name].repeat(16).try_into().expect("32 bytes"));
        Record {
            seal: digest(1),
            terms: digest(2),
            order: OrderId([name; 16]),
            manifest: digest(3),
            key_commitment: digest(4),
            statement_key: KeyId([5; 32]),
            sealing_key: digest(6),
            at: Time(1000 + u64::from(name)),
            release: None,
        }
    }

    fn program() -> ProgramId {
        ProgramId::new(&KeyId([9; 32]), "tool").expect("a good name")
    }

    fn compared(name: u8, minimum: u64) -> Step {
        Step::Compared { record: Box::new(record(name)), program: program(), minimum }
    }

    fn released(name: u8) -> Step {
        Step::Released { seal: record(name).seal, release: Release { token: Digest([8; 32]), at: Time(2000), settled: None } }
    }

    /// A state after these steps, and its file.
    fn after(steps: Vec<Step>) -> (State, Vec<u8>) {
        let (mut state, mut file, mut random) = (State::default(), Vec::new(), Repeatable::new(1));
        for step in steps {
            let prepared = state.prepare(step, &KEK, &mut random).expect("prepared");
            file.extend(prepared.frame());
            state.commit(prepared);
        }
        (state, file)
    }

    #[test]
    fn what_was_committed_is_read_again_from_its_frames() {
        let (state, file) = after(vec![compared(1, 3), compared(2, 2), released(1)]);
        assert_eq!(State::read(&KEK, &file).expect("read"), (state.clone(), file.len()));
        assert_eq!(state.minimum(&program()), 3, "a minimum only rises");
        assert!(state.record(&record(1).seal).expect("known").release.is_some());
        assert!(state.record(&record(2).seal).expect("known").release.is_none());
        assert_eq!(state.record(&record(3).seal).expect_err("unknown").code, Code::NotReceived);
    }

    #[test]
    fn a_frame_cut_short_by_a_crash_is_dropped_and_the_rest_stays() {
        let (state, whole) = after(vec![compared(1, 0)]);
        let (_, longer) = after(vec![compared(1, 0), compared(2, 0)]);
        for end in whole.len()..longer.len() {
            assert_eq!(State::read(&KEK, &longer[..end]).expect("read"), (state.clone(), whole.len()), "cut at {end}");
        }
    }

    #[test]
    fn a_changed_moved_missing_or_foreign_frame_is_refused() {
        let (_, file) = after(vec![compared(1, 0), compared(2, 0), released(1)]);
        let frames: Vec<&[u8]> = {
            let mut rest = &file[..];
            std::iter::from_fn(|| {
                let length = u32::from_be_bytes(*rest.first_chunk()?) as usize + 4;
                let (frame, after) = rest.split_at(length);
                rest = after;
                Some(frame)
            })
            .collect()
        };
        let refused = |file: &[u8], what: &str| {
            assert_eq!(State::read(&KEK, file).expect_err(what).code, Code::Unsealable, "{what}");
        };
        refused(&[frames[1], frames[0], frames[2]].concat(), "swapped");
        refused(&[frames[0], frames[2]].concat(), "one left out");
        refused(&[frames[0], frames[0]].concat(), "one twice");
        for at in (4..frames[0].len()).step_by(7) {
            let mut changed = file.clone();
            changed[at] ^= 1;
            refused(&changed, "a changed byte");
        }
        assert_eq!(State::read(&[8; 32], &file).expect_err("another key").code, Code::Unsealable);
    }

    #[test]
    fn a_state_rolled_back_to_before_a_delivery_refuses_that_delivery() {
        let (_, file) = after(vec![compared(1, 0), compared(2, 0)]);
        let (_, earlier) = after(vec![compared(1, 0)]);
        let (rolled_back, _) = State::read(&KEK, &file[..earlier.len()]).expect("an earlier state");
        assert_eq!(rolled_back.record(&record(2).seal).expect_err("not received by then").code, Code::NotReceived);
    }

    #[test]
    fn a_release_of_what_was_never_compared_is_refused_and_the_first_token_stays() {
        let (mut state, _) = after(vec![compared(1, 0), released(1)]);
        let refusal = state.prepare(released(2), &KEK, &mut Repeatable::new(2)).expect_err("never compared");
        assert_eq!(refusal.code, Code::NotReceived);
        let other = Step::Released { seal: record(1).seal, release: Release { token: Digest([1; 32]), at: Time(3000), settled: None } };
        let prepared = state.prepare(other, &KEK, &mut Repeatable::new(2)).expect("prepared");
        state.commit(prepared);
        assert_eq!(state.record(&record(1).seal).expect("known").release.as_ref().expect("released").token, Digest([8; 32]));
    }

    #[test]
    fn an_order_that_was_given_up_is_forgotten_and_never_taken_again_across_restarts_and_compactions() {
        let (state, file) = after(vec![compared(1, 0), released(1), compared(2, 0), Step::Retired { order: record(1).order }]);
        let (read, _) = State::read(&KEK, &file).expect("read");
        let (compacted, _) = read.compact(&KEK, &mut Repeatable::new(3)).expect("compacted");
        for state in [state, read, compacted] {
            assert_eq!(state.record(&record(1).seal).expect_err("forgotten").code, Code::NotReceived);
            assert!(!state.needs(&record(1).sealing_key) && state.record(&record(2).seal).is_ok());
            assert_eq!(state.check_order(&record(1).order).expect_err("given up").code, Code::OrderRetired);
            state.check_order(&record(2).order).expect("another order");
            let refusal = state.prepare(compared(1, 0), &KEK, &mut Repeatable::new(2)).expect_err("given up");
            assert_eq!(refusal.code, Code::OrderRetired);
        }
    }

    #[test]
    fn a_compacted_state_remembers_the_same_in_one_frame() {
        let (state, file) = after(vec![compared(1, 3), compared(1, 3), released(1), compared(2, 0)]);
        let (compacted, frame) = state.compact(&KEK, &mut Repeatable::new(3)).expect("compacted");
        let (read, length) = State::read(&KEK, &frame).expect("read");
        assert_eq!((&read, length), (&compacted, frame.len()));
        assert_eq!((&read.records, &read.minimums), (&state.records, &state.minimums));
        assert!(frame.len() < file.len());
    }

    #[test]
    fn a_sealing_key_is_needed_while_a_record_names_it() {
        let (state, _) = after(vec![compared(1, 0)]);
        assert!(state.needs(&record(1).sealing_key) && !state.needs(&record(2).sealing_key));
    }
}
