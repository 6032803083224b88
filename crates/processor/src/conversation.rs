//! One conversation on the control socket: what is asked, who may, and what is answered.

use crate::cache::Dropped;
use crate::confine::{self, Work};
use crate::connection::{Asked, Connection};
use crate::enrolling;
use crate::line::Stream;
use crate::processor::Processor;
use crate::receive::{Held, Word, receive};
use crate::{library, open, retiring, run};
use chipbound_trusted_core::{KeyStore, Memory};
use chipbound_wire::bounded::{Bytes, List, Text};
use chipbound_wire::control::{Line, Request, Response, WaitingDelivery};
use chipbound_wire::documents::Confirmation;
use chipbound_wire::limits::MAX_WAITING;
use chipbound_wire::signature::Sign;
use chipbound_wire::signed::verify_document;
use chipbound_wire::{Code, Refusal, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::Duration;

/// How long a client may take to say what it wants.
const FIRST_WORD: Duration = Duration::from_secs(30);

/// Requests in one conversation: far more than any client has, and tokens tried.
const MAX_REQUESTS: usize = 16;

/// Whether the conversation goes on after a request.
enum Next {
    Go,
    End,
}

/// What the client asks for first; None where it asks for nothing, or was refused.
pub fn first(connection: &mut Connection) -> Option<Asked> {
    connection.receive(FIRST_WORD).unwrap_or_else(|refusal| {
        refuse(connection, &refusal);
        None
    })
}

/// Whether a conversation that begins so starts a program, or opens a library in one: that is all of it then.
#[must_use]
pub fn is_start(asked: &Asked) -> bool {
    matches!(asked.request, Request::Run { .. } | Request::Library { .. })
}

/// Answers `first` and further requests until the client closes its connection or one is refused. What was received and not taken is then
/// gone.
pub fn converse(mut connection: Connection, first: Asked, us: &Processor) {
    let (mut held, mut first) = (None, Some(first));
    for _ in 0..MAX_REQUESTS {
        let patience = if held.is_some() { Duration::from_secs(us.config.limits.release_seconds) } else { FIRST_WORD };
        let asked = first.take().map_or_else(|| connection.receive(patience), |first| Ok(Some(first)));
        let answered = match asked {
            Ok(None) => return,
            Ok(Some(asked)) => answer(&mut connection, asked, &mut held, us),
            Err(refusal) => Err(refusal),
        };
        match answered {
            Ok(Next::Go) => {}
            Ok(Next::End) => return,
            Err(refusal) => {
                let told = refuse(&mut connection, &refusal);
                // A wrong token is no reason to throw the delivery away.
                if !told || held.is_none() {
                    return;
                }
            }
        }
    }
}

/// Whether the client could be told.
fn refuse(connection: &mut Connection, refusal: &Refusal) -> bool {
    tracing::info!(uid = connection.peer().uid, reason = %refusal, "refused");
    connection.refuse(refusal).is_ok()
}

fn answer(connection: &mut Connection, asked: Asked, held: &mut Option<Held>, us: &Processor) -> Result<Next> {
    confine::thread(if is_start(&asked) { Work::Start } else { Work::Session })?;
    let mut descriptors = asked.descriptors.into_iter();
    let mut next = || descriptors.next();
    match asked.request {
        Request::Describe => connection.send(&describe(us)?, None)?,
        Request::Enroll { authority, voucher } => {
            check_operator(connection)?;
            enrolling::enroll(us, &authority, &voucher)?;
            connection.send(&describe(us)?, None)?;
        }
        Request::Receive { confirmation, line, rate } => {
            let _place = us.transfers.enter(connection.peer().uid)?;
            *held = None;
            let delivery = take(connection, &confirmation, (&line, rate), next(), us)?;
            let response = Response::Received {
                acknowledgement: Bytes::new(delivery.acknowledged.acknowledgement.clone())?,
                body_size: delivery.acknowledged.seal.body_size,
                chosen: chosen(&delivery),
            };
            *held = Some(delivery);
            connection.send(&response, None)?;
        }
        Request::Release { token } => {
            let nothing = || Refusal::new(Code::NotReceived, "nothing was received on this connection");
            let delivery = held.as_mut().ok_or_else(nothing)?;
            let (package, size) = delivery.release(&token, us)?;
            let order = delivery.acknowledged.delivery.terms.order;
            connection.send(&Response::Released { size, order }, Some(package.as_fd()))?;
        }
        Request::Waiting => {
            let waiting = us.spool.waiting()?.into_iter().filter(|w| is_of(connection, w.goods.uid)).take(MAX_WAITING);
            let waiting = waiting.map(|w| WaitingDelivery {
                order: w.order,
                done: w.done,
                size: w.goods.size,
                until: w.goods.until,
                title: Text::cut(&w.goods.title),
            });
            connection.send(&Response::Waiting { deliveries: List::new(waiting.collect())? }, None)?;
        }
        Request::Retire { request } => {
            let retirement = retiring::retire(us, &request)?;
            connection.send(&Response::Retired { retirement: Bytes::new(retirement)? }, None)?;
        }
        Request::GiveUp { order } => {
            let whose = us.spool.waiting()?.into_iter().find(|w| w.order == order);
            if !whose.is_some_and(|w| is_of(connection, w.goods.uid)) || !us.spool.forget(order)? {
                return Err(Refusal::new(Code::UnknownOrder, "no delivery of that order waits here for you"));
            }
            connection.send(&Response::Done, None)?;
        }
        Request::Taken => {
            if let Some(delivery) = held.take() {
                delivery.taken();
            }
            connection.send(&Response::Done, None)?;
            return Ok(Next::End);
        }
        Request::Run { path, how, begun, with } => {
            let asked = run::Asked { path: &path, how, begun: begun.as_deref(), with: with.as_deref().unwrap_or_default() };
            run::run(connection, &asked, descriptors, us)?;
            return Ok(Next::End);
        }
        Request::Library { address } => {
            library::open_in(connection, wanted(next())?, address, us)?;
            return Ok(Next::End);
        }
        Request::Open => {
            let _place = us.transfers.enter(connection.peer().uid)?;
            let size = open::open(connection, wanted(next())?, wanted(next())?, us)?;
            connection.send(&Response::Opened { size }, None)?;
        }
        Request::Inspect { path } => {
            let _place = us.transfers.enter(connection.peer().uid)?;
            let response = open::inspect(run::package(path.as_deref(), next())?, us)?;
            connection.send(&response, None)?;
        }
        Request::Forget { program } => {
            check_operator(connection)?;
            let Dropped { builds, bytes } = us.drop_where("the operator's wish", |o| program.as_ref().is_none_or(|p| p == o.program()));
            connection.send(&Response::Forgotten { builds, bytes }, None)?;
        }
    }
    Ok(Next::Go)
}

fn wanted(descriptor: Option<OwnedFd>) -> Result<OwnedFd> {
    descriptor.ok_or_else(|| Refusal::new(Code::Malformed, "a descriptor is missing beside the request"))
}

/// Receives a delivery while the client stays.
fn take(
    connection: &mut Connection,
    confirmation: &[u8],
    (line, rate): (&Line, Option<u32>),
    descriptor: Option<OwnedFd>,
    us: &Processor,
) -> Result<Held> {
    // Nobody makes this processor dial or shake hands without a server's signed word for it.
    let enrolment = us.vault.enrolment()?;
    let agreed = verify_document::<Confirmation>(confirmation, &enrolment.trust.get(), us.now())?;
    if agreed.processor != us.vault.keys().key_id() {
        return Err(Refusal::new(Code::ProcessorMismatch, "the order is for another processor"));
    }
    us.vault.check_order(&agreed.order)?;
    let silence = Duration::from_secs(us.config.limits.silence_seconds);
    let stream = Stream::open(line, descriptor, silence)?.slowed_to(rate);
    thread::scope(|scope| {
        let watch = stream.watch(connection, silence, scope)?;
        let (pulse, uid) = (stream.pulse(), connection.peer().uid);
        let mut progress = |word| match (word, line) {
            (Word::GoesOn { kept, total }, _) => connection.send(&Response::GoesOn { kept, total }, None),
            (Word::Checked { .. }, _) => {
                pulse.beat(); // Nobody sends anything meanwhile.
                Ok(())
            }
            (Word::Received { done, total }, Line::Own { .. }) => connection.send(&Response::Progress { done, total }, None),
            (Word::Received { .. }, Line::Tunnel) => Ok(()), // The client sees every byte go by.
        };
        let received = receive(stream, confirmation, uid, us, &mut progress);
        match received {
            Err(e) if watch.cancelled() => Err(Refusal::new(Code::Cancelled, "the client went away").because(e)),
            other => other,
        }
    })
}

fn chosen(delivery: &Held) -> Text<{ chipbound_wire::limits::MAX_NAME }> {
    let terms = &delivery.acknowledged.delivery.terms;
    Text::cut(&format!("{}, {} key", terms.suite, terms.key_mode))
}

fn describe(us: &Processor) -> Result<Response> {
    let keys = us.vault.keys();
    let enrolment = us.vault.enrolment().ok();
    let (chain, valid_until, root) = match &enrolment {
        Some(e) => (e.issued.chain.clone(), Some(e.certified.validity().1), e.issued.root.clone()),
        None => (List::default(), None, Bytes::default()),
    };
    let interpreter = us.interpreter.as_ref().map(|own| Bytes::new(own.path().as_os_str().as_encoded_bytes().to_vec())).transpose()?;
    let (processor, class) = (keys.key_id(), keys.class());
    Ok(Response::Description { processor, class, chain, valid_until, pid: std::process::id(), root, interpreter })
}

/// Whether something of that user is the client's affair.
fn is_of(connection: &Connection, uid: u32) -> bool {
    let peer = connection.peer().uid;
    peer == uid || peer == 0
}

/// Only root and the daemon's own user may enroll it or make it forget.
fn check_operator(connection: &Connection) -> Result<()> {
    let uid = connection.peer().uid;
    if uid == 0 || uid == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(Refusal::new(Code::Forbidden, "only root and the processor's own user may ask for that"))
}
