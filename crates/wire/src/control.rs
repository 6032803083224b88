//! The processor's unix socket: what the client asks of it. Frames are four bytes of length (big endian) and one
//! [`Request`] or [`Response`] in CBOR, at most [`MAX_CONTROL`] bytes; file descriptors travel beside the frame by
//! SCM_RIGHTS, in the order that each request names.

use crate::bounded::{Bytes, List, Text};
use crate::certificate::Chain;
use crate::ids::{Digest, KeyId, OrderId, ProgramId, Time};
pub use crate::limits::MAX_CONTROL;
use crate::limits::{MAX_DOCUMENT, MAX_INTERPRETER, MAX_NAME, MAX_PIECES, MAX_TEXT, MAX_WAITING, MAX_WITH};
use crate::messages::Abort;
use crate::suite::{Class, Mapping, Profile};
use minicbor::{Decode, Encode};

/// What a client asks. One connection carries one conversation.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Request {
    /// Who are you? Answered with [`Response::Description`].
    #[n(0)]
    Describe,
    /// Enroll at the authority with a voucher. Only root or the processor's own uid may. Answered with a description.
    #[n(1)]
    Enroll {
        /// `https://host:port` of the authority.
        #[n(0)]
        authority: Text<MAX_TEXT>,
        /// The voucher's text.
        #[n(1)]
        voucher: Text<MAX_NAME>,
    },
    /// Receive a delivery (steps 1003-1008). In tunnel mode one descriptor comes along: a stream socket whose other end the
    /// client relays to the server. Answered with [`Response::GoesOn`] where it does, any number of [`Response::Progress`] and one
    /// [`Response::Received`].
    #[n(2)]
    Receive {
        /// The signed order confirmation that the client agreed to.
        #[n(0)]
        confirmation: Bytes<MAX_DOCUMENT>,
        /// How to reach the server.
        #[n(1)]
        line: Line,
        /// Take no more than so many bytes a second.
        #[n(2)]
        rate: Option<u32>,
    },
    /// The release token (step 1010), on the connection that received. Answered with [`Response::Released`] and one
    /// descriptor: the complete package, open for reading (step 1011).
    #[n(3)]
    Release {
        /// The signed release token.
        #[n(0)]
        token: Bytes<MAX_DOCUMENT>,
    },
    /// The package is on the client's disk; the spool may go. Answered with [`Response::Done`].
    #[n(4)]
    Taken,
    /// Attach to this process, which will exec the package. A descriptor of the package, open for reading, comes along where
    /// the client may read it, then one of each package of data that the program is to find open. Answered with [`Response::Ready`];
    /// then the client execs. A client that says how can be answered with [`Response::Execute`] too, or, where it asks for it, is only
    /// told with [`Response::Explained`].
    #[n(5)]
    Run {
        /// The package's path, to open it where no descriptor came; never trusted as its identity.
        #[n(0)]
        path: Bytes<4096>,
        /// How its code is to get into the process.
        #[n(1)]
        how: Option<How>,
        /// The client stands in this processor's interpreter, begun by the kernel for the package, and can become the program where it
        /// stands; these descriptors are the interpreter's own, to be closed then. Otherwise it is answered as any client.
        #[n(2)]
        begun: Option<List<u32, 2>>,
        /// The descriptors under which the program finds its data, in the order of the packages that came along. The client holds
        /// them until its exec, open to anything.
        #[n(8)]
        with: Option<List<u32, MAX_WITH>>,
    },
    /// Open a data package. Two descriptors come along: the package for reading, the output for writing. Answered with
    /// progress and [`Response::Opened`].
    #[n(6)]
    Open,
    /// Is this package whole, and can it be opened here? A descriptor of the package, open for reading, comes along where the
    /// client may read it. Answered with [`Response::Inspected`].
    #[n(7)]
    Inspect {
        /// The package's path, to open it where no descriptor came.
        #[n(0)]
        path: Option<Bytes<4096>>,
    },
    /// Which deliveries of this user's were cut short and wait to go on? Of all users for root. Answered with [`Response::Waiting`].
    #[n(9)]
    Waiting,
    /// Throw away what waits of this order. Answered with [`Response::Done`].
    #[n(10)]
    GiveUp {
        /// The order.
        #[n(0)]
        order: OrderId,
    },
    /// Give an order up for another processor: forget what opens its packages, for ever. Answered with [`Response::Retired`].
    #[n(11)]
    Retire {
        /// The server's signed request.
        #[n(0)]
        request: Bytes<MAX_DOCUMENT>,
    },
    /// Drop from memory what was opened. Only root or the processor's own uid may. Answered with [`Response::Forgotten`].
    #[n(8)]
    Forget {
        /// Of this program alone; of all where absent.
        #[n(0)]
        program: Option<ProgramId>,
    },
    /// Open a shared library in the process that asks, a program that this processor started. Its file, open for reading, comes along.
    /// Answered with [`Response::Knock`]; on the connection that the process makes then, with [`Response::Library`].
    #[n(16)]
    Library {
        /// An address in the process at which the file is mapped.
        #[n(0)]
        address: u64,
    },
}

/// A delivery that was cut short and waits to go on.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WaitingDelivery {
    /// Its order.
    #[n(0)]
    pub order: OrderId,
    /// Bytes of the body that are here.
    #[n(1)]
    pub done: u64,
    /// Bytes of the whole body.
    #[n(2)]
    pub size: u64,
    /// Until when it waits.
    #[n(3)]
    pub until: Time,
    /// Program and version, for people.
    #[n(4)]
    pub title: Text<MAX_TEXT>,
}

/// How a program's code is to get into its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Encode, Decode)]
pub struct How {
    /// In this way and no other; absent: as the processor chooses.
    #[n(0)]
    pub mapping: Option<Mapping>,
    /// Say the ways, and start nothing.
    #[n(1)]
    pub explain: bool,
}

/// One way of mapping on this machine, for this client and package.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub struct WayHere {
    /// Which.
    #[n(0)]
    pub mapping: Mapping,
    /// What stands in its way; absent: nothing.
    #[n(1)]
    pub obstacle: Option<Text<MAX_TEXT>>,
}

/// How the second path reaches the server (source \[31\]).
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Line {
    /// Through the client, over the descriptor that came along.
    #[n(0)]
    Tunnel,
    /// On a line of its own: the processor dials and shows the ticket.
    #[n(1)]
    Own {
        /// `host:port`.
        #[n(0)]
        address: Text<MAX_NAME>,
        /// One-use, 32 bytes.
        #[n(1)]
        ticket: Digest,
    },
}

/// What the processor answers.
#[derive(Clone, PartialEq, Eq, Debug, Encode, Decode)]
pub enum Response {
    /// Who the processor is.
    #[n(0)]
    Description {
        /// The id of its identity key.
        #[n(0)]
        processor: KeyId,
        /// The class of its key store.
        #[n(1)]
        class: Class,
        /// Its certificate chain; empty before enrolment.
        #[n(2)]
        chain: Chain,
        /// The last second of its certificate's validity.
        #[n(3)]
        valid_until: Option<Time>,
        /// The daemon's process id, for the client to name as its tracer where Yama asks for one.
        #[n(4)]
        pid: u32,
        /// The root certificate that it trusts; empty before enrolment.
        #[n(5)]
        root: Bytes<{ crate::limits::MAX_CERTIFICATE }>,
        /// The absolute path of its interpreter, for packages to name so that the kernel starts them; none where it has none.
        #[n(6)]
        interpreter: Option<Bytes<MAX_INTERPRETER>>,
    },
    /// So far.
    #[n(1)]
    Progress {
        /// Bytes done.
        #[n(0)]
        done: u64,
        /// Bytes in all.
        #[n(1)]
        total: u64,
    },
    /// Received, opened and compared: the signed acknowledgement (step 1008).
    #[n(2)]
    Received {
        /// The signed acknowledgement.
        #[n(0)]
        acknowledgement: Bytes<MAX_DOCUMENT>,
        /// Bytes of the body.
        #[n(1)]
        body_size: u64,
        /// The suite and key mode, for people.
        #[n(2)]
        chosen: Text<MAX_NAME>,
    },
    /// The token was verified; the package comes along as a descriptor.
    #[n(3)]
    Released {
        /// Bytes of the whole package.
        #[n(0)]
        size: u64,
        /// The order, so that the client can name its spool.
        #[n(1)]
        order: OrderId,
    },
    /// The spool is gone.
    #[n(4)]
    Done,
    /// Attached, the package is verified and opened: exec now.
    #[n(5)]
    Ready,
    /// Opened to the output.
    #[n(6)]
    Opened {
        /// Bytes written.
        #[n(0)]
        size: u64,
    },
    /// The package is whole and can be opened here.
    #[n(7)]
    Inspected {
        /// Digest of the vendor's signed manifest.
        #[n(0)]
        manifest: Digest,
        /// Program and version, for people.
        #[n(1)]
        title: Text<MAX_TEXT>,
        /// The interpreter that the package names; none where it can be started by `chipbound run` alone.
        #[n(2)]
        interpreter: Option<Bytes<MAX_INTERPRETER>>,
        /// What of it is sealed, as its vendor chose.
        #[n(3)]
        profile: Profile,
        /// The program.
        #[n(4)]
        program: ProgramId,
    },
    /// Refused.
    #[n(8)]
    Refused {
        /// Why.
        #[n(0)]
        abort: Abort,
    },
    /// What was opened is gone from memory, but for what running programs use of it.
    #[n(9)]
    Forgotten {
        /// Builds of programs and data.
        #[n(0)]
        builds: u64,
        /// Bytes of their memory.
        #[n(1)]
        bytes: u64,
    },
    /// Execute the descriptor that comes along; nothing is attached to the client.
    #[n(10)]
    Execute {
        /// Whether the variables that bring foreign code in are to be taken out of the environment before.
        #[n(0)]
        drop_loader_variables: bool,
    },
    /// The delivery goes on where an earlier one was cut short; told once, before anything else of it.
    #[n(12)]
    GoesOn {
        /// Bytes of the body that are here already.
        #[n(0)]
        kept: u64,
        /// Bytes of the whole body.
        #[n(1)]
        total: u64,
    },
    /// Deliveries that wait, the one that was at work last first.
    #[n(13)]
    Waiting {
        /// They.
        #[n(0)]
        deliveries: List<WaitingDelivery, MAX_WAITING>,
    },
    /// The order was given up.
    #[n(14)]
    Retired {
        /// The signed retirement.
        #[n(0)]
        retirement: Bytes<MAX_DOCUMENT>,
    },
    /// How the package would be started.
    #[n(11)]
    Explained {
        /// The way that would be taken; absent where none can be.
        #[n(0)]
        chosen: Option<Mapping>,
        /// All ways, the preferred first.
        #[n(1)]
        ways: List<WayHere, 8>,
    },
    /// Connect to the socket of this name in the kernel's own name space (unix(7), "abstract"): what the process does after this
    /// processor knew it is surely its own. A refusal comes on the connection that asked.
    #[n(17)]
    Knock {
        /// Random.
        #[n(0)]
        name: Digest,
    },
    /// The library is verified and opened: map these pieces of the file that comes along.
    #[n(18)]
    Library {
        /// In ascending order.
        #[n(0)]
        pieces: List<Piece, MAX_PIECES>,
    },
}

/// Pages of a library that are only read or executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Encode, Decode)]
#[cbor(array)]
pub struct Piece {
    /// First address, before the load bias, a multiple of 4096.
    #[n(0)]
    pub address: u64,
    /// Bytes, a multiple of 4096.
    #[n(1)]
    pub length: u64,
    /// Offset in the file, a multiple of 4096.
    #[n(2)]
    pub at: u64,
    /// Whether they are code.
    #[n(3)]
    pub executable: bool,
}
