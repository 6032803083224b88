//! A proof that goes with one receipt (C2SP tlog-proof): where the entry is, the hashes, the checkpoint, and as its extra data the
//! server's signed statement on the log's key.

use super::tree::{MAX_PROOF, MAX_SIZE};
use crate::error::{Code, Refusal, Result};
use crate::ids::TreeHash;
use crate::limits::MAX_PROOF_FILE;
use data_encoding::BASE64;

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";

/// The proof of one entry, nothing verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InclusionProof {
    /// The signed statement on the log's key; not covered by anything here, verified by itself.
    pub extra: Vec<u8>,
    /// The entry's place in the log.
    pub index: u64,
    /// The leaf's sibling first.
    pub hashes: Vec<TreeHash>,
    /// The checkpoint as it was signed.
    pub checkpoint: String,
}

impl InclusionProof {
    /// The proof as it travels and is kept.
    #[must_use]
    pub fn to_text(&self) -> String {
        let extra = match self.extra.is_empty() {
            true => String::new(),
            false => format!("extra {}\n", BASE64.encode(&self.extra)),
        };
        let hashes: String = self.hashes.iter().map(|hash| BASE64.encode(&hash.0) + "\n").collect();
        format!("{FIRST_LINE}\n{extra}index {}\n{hashes}\n{}", self.index, self.checkpoint)
    }

    /// Reads a proof. [`Code::TooLarge`] beyond [`MAX_PROOF_FILE`] bytes or 64 hashes; [`Code::Malformed`] for anything that
    /// [`Self::to_text`] would write in another way.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > MAX_PROOF_FILE {
            return Err(Refusal::new(Code::TooLarge, "the proof is larger than its limit"));
        }
        let bad = || Refusal::new(Code::Malformed, "not a proof of the log");
        let text = std::str::from_utf8(bytes).map_err(|_| bad())?;
        let (head, checkpoint) = text.split_once("\n\n").ok_or_else(bad)?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(FIRST_LINE) {
            return Err(bad());
        }
        let base64 = |text: &str| BASE64.decode(text.as_bytes()).map_err(|_| bad());
        let extra = match lines.next_if(|line| line.starts_with("extra ")) {
            Some(line) => base64(&line["extra ".len()..])?,
            None => Vec::new(),
        };
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(|n| n.parse().ok()).ok_or_else(bad)?;
        let hashes: Vec<_> = lines.map(|line| TreeHash::from_slice(&base64(line)?)).collect::<Result<_>>()?;
        if hashes.len() > MAX_PROOF || index >= MAX_SIZE {
            return Err(Refusal::new(Code::TooLarge, "the proof is longer than that of any log"));
        }
        let read = Self { extra, index, hashes, checkpoint: checkpoint.to_owned() };
        if read.to_text() == text { Ok(read) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> InclusionProof {
        let hashes = (0..3).map(|n| TreeHash([n; 32])).collect();
        InclusionProof { extra: b"statement".to_vec(), index: 73_894, hashes, checkpoint: "o\n1\nr\n\n\u{2014} o AAAA\n".to_owned() }
    }

    #[test]
    fn a_proof_is_read_as_it_was_written() {
        let whole = proof();
        let without = InclusionProof { extra: Vec::new(), ..proof() };
        let first = InclusionProof { hashes: Vec::new(), index: 0, ..proof() };
        for proof in [whole, without, first] {
            assert_eq!(InclusionProof::parse(proof.to_text().as_bytes()).expect("a proof"), proof);
        }
    }

    #[test]
    fn proofs_written_in_another_way_or_beyond_the_limits_are_refused() {
        let text = proof().to_text();
        for (from, to) in [
            ("tlog-proof@v1", "tlog-proof@v2"),
            ("index 73894", "index 073894"),
            ("index 73894", "index -1"),
            ("index 73894", "index"),
            ("extra ", "Extra "),
            ("extra ", "extra  "),
            ("AQEB", "AQE*"),
            ("\nAQEB", "\nAQEBAQEB"),
            ("\n\n", "\n"),
        ] {
            let other = text.replacen(from, to, 1);
            assert_ne!(other, text, "{from}");
            assert_eq!(InclusionProof::parse(other.as_bytes()).expect_err(to).code, Code::Malformed, "{to:?}");
        }
        let long = InclusionProof { hashes: vec![TreeHash([0; 32]); MAX_PROOF + 1], ..proof() };
        let huge = InclusionProof { extra: vec![0; MAX_PROOF_FILE], ..proof() };
        let far = InclusionProof { index: u64::MAX, ..proof() };
        for beyond in [long, huge, far] {
            assert_eq!(InclusionProof::parse(beyond.to_text().as_bytes()).expect_err("too large").code, Code::TooLarge);
        }
    }
}
