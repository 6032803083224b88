//! Several system calls of a start, to be made in a stopped process in a row, between one resumption and one stop.
//!
//! A call by ptrace alone costs two stops. Here the calls are written as a table into the scratch area below the stack of the process,
//! and a few instructions of machine code ([`arch::stub`](crate::sys::arch::stub)) go through it: they make each call, keep its result in the
//! table, end at the first one that fails, and trap. An argument is the address of a word, so that a call can use what an earlier one
//! returned or wrote.

use std::io;

use crate::error::LoadError;
use crate::inject::{CallError, LAST_ERRNO, Memory};

/// Words of one record of the table: number, six addresses of arguments, whether an error is taken, result, six words for arguments
/// that are known beforehand.
const RECORD: usize = 15;
/// Size of one record, bytes. The stub steps by it.
pub(crate) const RECORD_SIZE: usize = RECORD * WORD;
const WORD: usize = 8;
const ADDRESSES: usize = 1;
const TOLERANT: usize = 7;
const RESULT: usize = 8;
const OWN: usize = 9;
/// The number that ends the table.
const END: u64 = u64::MAX;
/// The most calls of one script: a program of [`MAX_PROGRAM_HEADERS`](crate::elf) segments is started by several.
pub(crate) const MAX_CALLS: usize = 32;
/// Size of the largest table, bytes.
pub(crate) const TABLE_SIZE: usize = MAX_CALLS * RECORD_SIZE + WORD;

/// A call of a script, to name its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call(usize);

/// One argument of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Argument {
    /// This very value.
    Is(u64),
    /// What an earlier call of the same script returned.
    ResultOf(Call),
    /// The eight bytes that lie at this address of the process when the call is made.
    At(u64),
}

impl From<u64> for Argument {
    fn from(value: u64) -> Self {
        Self::Is(value)
    }
}

impl From<Call> for Argument {
    fn from(call: Call) -> Self {
        Self::ResultOf(call)
    }
}

#[derive(Debug)]
struct Line {
    name: &'static str,
    number: i64,
    arguments: [Argument; 6],
    tolerant: bool,
}

/// The calls, in order.
#[derive(Debug, Default)]
pub(crate) struct Script {
    lines: Vec<Line>,
}

/// What the calls of a script returned, up to the one that failed.
#[derive(Debug)]
pub(crate) struct Results(pub(crate) Vec<i64>);

impl Script {
    /// Adds a call. The script ends here if the kernel refuses it. Arguments that are left out are 0.
    pub(crate) fn call<const N: usize>(&mut self, name: &'static str, number: i64, arguments: [Argument; N]) -> Call {
        self.push(name, number, &arguments, false)
    }

    /// Adds a call that the kernel may refuse.
    pub(crate) fn try_call<const N: usize>(&mut self, name: &'static str, number: i64, arguments: [Argument; N]) -> Call {
        self.push(name, number, &arguments, true)
    }

    fn push(&mut self, name: &'static str, number: i64, given: &[Argument], tolerant: bool) -> Call {
        let mut arguments = [Argument::Is(0); 6];
        arguments[..given.len()].copy_from_slice(given);
        self.lines.push(Line { name, number, arguments, tolerant });
        Call(self.lines.len() - 1)
    }

    /// How many more calls it can take.
    pub(crate) fn room(&self) -> usize {
        MAX_CALLS - self.lines.len()
    }

    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The table as it is to lie at `at`.
    pub(crate) fn table(&self, at: u64) -> Vec<u8> {
        let address = |line: usize, word: usize| at + (line * RECORD_SIZE + word * WORD) as u64;
        let mut words = Vec::with_capacity(self.lines.len() * RECORD + 1);
        for (index, line) in self.lines.iter().enumerate() {
            let mut record = [0; RECORD];
            record[0] = line.number.cast_unsigned();
            for (place, argument) in line.arguments.iter().enumerate() {
                record[ADDRESSES + place] = match *argument {
                    Argument::Is(value) => {
                        record[OWN + place] = value;
                        address(index, OWN + place)
                    }
                    Argument::ResultOf(call) => address(call.0, RESULT),
                    Argument::At(address) => address,
                };
            }
            record[TOLERANT] = u64::from(line.tolerant);
            words.extend(record);
        }
        words.push(END);
        words.into_iter().flat_map(u64::to_ne_bytes).collect()
    }

    /// Reads the results out of a table of which `made` calls were made.
    pub(crate) fn results(table: &[u8], made: usize) -> Results {
        let of = |record: &[u8]| i64::from_ne_bytes(record[RESULT * WORD..][..WORD].try_into().expect("a word of a record"));
        Results(table.chunks_exact(RECORD_SIZE).take(made).map(of).collect())
    }

    /// Makes the calls one by one with `make`, for processes where no machine code can be placed.
    pub(crate) fn one_by_one(
        &self,
        memory: &Memory,
        mut make: impl FnMut(i64, [u64; 6]) -> Result<i64, LoadError>,
    ) -> Result<Results, LoadError> {
        let mut results = Results(Vec::with_capacity(self.lines.len()));
        for line in &self.lines {
            let mut arguments = [0; 6];
            for (value, argument) in arguments.iter_mut().zip(&line.arguments) {
                *value = match *argument {
                    Argument::Is(value) => value,
                    Argument::ResultOf(call) => results.0[call.0].cast_unsigned(),
                    Argument::At(address) => memory.word(address)?,
                };
            }
            let result = make(line.number, arguments)?;
            results.0.push(result);
            if is_error(result) && !line.tolerant {
                break;
            }
        }
        Ok(results)
    }

    /// Whether every call was made, and was not refused unless it may be. Else the name of the call and what went wrong.
    pub(crate) fn check(&self, results: &Results) -> Result<(), (&'static str, CallError)> {
        let refused = self.lines.iter().zip(&results.0).find(|(line, result)| is_error(**result) && !line.tolerant);
        if let Some((line, result)) = refused {
            return Err((line.name, CallError::Refused(io::Error::from_raw_os_error(-(*result as i32)))));
        }
        match self.lines.get(results.0.len()) {
            Some(line) => Err((line.name, CallError::Lost(LoadError::ProcessMismatch("it went on elsewhere".into())))),
            None => Ok(()),
        }
    }
}

impl Results {
    /// What a call returned; -4095 to -1 are errors.
    pub(crate) fn of(&self, call: Call) -> i64 {
        self.0[call.0]
    }

    /// What a call returned that was not refused.
    pub(crate) fn value(&self, call: Call) -> u64 {
        self.of(call).cast_unsigned()
    }
}

/// Whether a result says that the kernel refused.
pub(crate) fn is_error(result: i64) -> bool {
    (LAST_ERRNO..0).contains(&result)
}
