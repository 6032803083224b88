//! Passwords, sessions, and who may ask.

use crate::server::Server;
use crate::statement::sales;
use crate::storage::{NewAccount, Principal, Repository};
use crate::tokens::PREFIX;
use argon2::password_hash::{Output, PasswordHash, PasswordHasher, SaltString};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use chipbound_transport::network_of;
use chipbound_wire::api::{Account, AccountRole, LogIn, Session};
use chipbound_wire::limits::MAX_NAME;
use chipbound_wire::random::fresh;
use chipbound_wire::{AccountId, Code, Digest, Refusal, Result, SystemRandom, Time};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

/// Log-ins that wait for their turn.
const WAITING: usize = 64;
/// Log-ins of one peer among them.
const WAITING_OF_A_PEER: usize = 32;
/// How long a log-in waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// Wrong passwords that may be given within [`WINDOW`] for one user from one address, from one address for all users, and for one user from
/// all addresses.
const WRONG_OF_A_USER: u32 = 10;
const WRONG_OF_A_PEER: u32 = 100;
const WRONG_OF_AN_ACCOUNT: u32 = 100;
/// Seconds for which wrong passwords count.
const WINDOW: u64 = 60;
/// Users and addresses that are remembered at once.
const MAX_REMEMBERED: usize = 64 * 1024;
/// Sessions of one account at once; the oldest give way.
const SESSIONS: u32 = 64;
/// The longest password, in bytes; the shortest, when an account is made.
pub const MAX_PASSWORD: usize = 1024;
/// See [`MAX_PASSWORD`].
pub const MIN_PASSWORD: usize = 8;

/// Hashes a password with Argon2id (RFC 9106) and a fresh salt: a PHC string. Slow by intent.
pub fn hash_password(password: &str) -> Result<String> {
    let internal = |e: argon2::password_hash::Error| Refusal::new(Code::Internal, format!("a password cannot be hashed: {e}"));
    let salt = SaltString::encode_b64(&fresh::<16>(&mut SystemRandom)).map_err(internal)?;
    Ok(Argon2::default().hash_password(password.as_bytes(), &salt).map_err(internal)?.to_string())
}

/// A new account, as the operator makes it. Refuses user ids that are not 1 to 128 visible characters, and passwords shorter than
/// [`MIN_PASSWORD`] bytes.
pub fn new_account(user: &str, role: AccountRole, password: &str, created_at: Time) -> Result<NewAccount> {
    if user.is_empty() || user.len() > MAX_NAME || user.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Refusal::new(Code::Malformed, "a user id has 1 to 128 bytes and no spaces"));
    }
    if !(MIN_PASSWORD..=MAX_PASSWORD).contains(&password.len()) {
        return Err(Refusal::new(Code::Malformed, format!("a password has {MIN_PASSWORD} to {MAX_PASSWORD} bytes")));
    }
    let account = AccountId(fresh(&mut SystemRandom));
    Ok(NewAccount { account, user: user.to_owned(), role, password: hash_password(password)?, created_at })
}

/// Checks passwords one after another on a thread of its own, since each takes 19 MiB, and remembers who gave wrong ones.
pub(crate) struct Passwords {
    checks: SyncSender<Check>,
    waiting: Mutex<HashMap<IpAddr, usize>>,
    wrong: Mutex<HashMap<Suspect, (u32, Time)>>,
    /// From where users logged in: whoever tries their passwords elsewhere does not keep them out.
    right: Mutex<HashSet<(IpAddr, String)>>,
}

/// An address and a user, one of the two for all of the other.
type Suspect = (Option<IpAddr>, Option<String>);

/// Whether what began at `since` still counts. A clock that was set back makes nobody wait for it to come there again.
fn counts(since: Time, now: Time) -> bool {
    now.0.abs_diff(since.0) < WINDOW
}

/// A password to be compared with a hash, or with that of nobody where there is none.
struct Check {
    password: Zeroizing<String>,
    hash: Option<String>,
    answer: oneshot::Sender<bool>,
}

impl Passwords {
    pub(crate) fn new() -> Result<Self> {
        let (checks, waiting) = sync_channel::<Check>(WAITING);
        let thread = std::thread::Builder::new().name("passwords".to_owned());
        thread.spawn(move || check_all(&waiting)).map_err(|e| Refusal::io("starting a thread", e))?;
        Ok(Self { checks, waiting: Mutex::default(), wrong: Mutex::default(), right: Mutex::default() })
    }

    /// A place among the log-ins that wait; [`Code::Busy`] where `peer` has its share already, so that one peer does not fill the queue.
    fn turn(&self, peer: IpAddr) -> Result<Turn<'_>> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let count = waiting.entry(peer).or_default();
        if *count >= WAITING_OF_A_PEER {
            return Err(Refusal::new(Code::Busy, "too many log-ins from this address at once"));
        }
        *count += 1;
        Ok(Turn { passwords: self, peer })
    }

    /// Whether `password` has the hash `hash`. Without a hash it costs the same and is always wrong.
    async fn check(&self, password: Zeroizing<String>, hash: Option<String>) -> Result<bool> {
        let busy = || Refusal::new(Code::Busy, "too many log-ins at once");
        let (answer, checked) = oneshot::channel();
        self.checks.try_send(Check { password, hash, answer }).map_err(|_| busy())?;
        let checked = tokio::time::timeout(TURN, checked).await.map_err(|_| busy())?;
        checked.map_err(|e| Refusal::new(Code::Internal, "checking a password failed").because(e))
    }

    fn admit(&self, peer: IpAddr, user: &str, now: Time) -> Result<()> {
        let known = self.right.lock().unwrap_or_else(PoisonError::into_inner).contains(&(peer, user.to_owned()));
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if wrong.len() >= MAX_REMEMBERED {
            wrong.retain(|_, (_, since)| counts(*since, now));
        }
        let count = |key| wrong.get(&key).filter(|(_, since)| counts(*since, now)).map_or(0, |(count, _)| *count);
        let user = || Some(user.to_owned());
        let too_many = count((Some(peer), user())) >= WRONG_OF_A_USER
            || count((Some(peer), None)) >= WRONG_OF_A_PEER
            || count((None, user())) >= WRONG_OF_AN_ACCOUNT && !known;
        if too_many || wrong.len() >= MAX_REMEMBERED {
            return Err(Refusal::new(Code::RateLimited, "too many wrong passwords: wait a minute").retry_after(WINDOW));
        }
        Ok(())
    }

    fn note_wrong(&self, peer: IpAddr, user: &str, now: Time) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        for key in [(Some(peer), Some(user.to_owned())), (Some(peer), None), (None, Some(user.to_owned()))] {
            let entry = wrong.entry(key).or_insert((0, now));
            if !counts(entry.1, now) {
                *entry = (0, now);
            }
            entry.0 += 1;
        }
    }

    /// Remembers from where a user logged in, as long as there is room.
    fn note_right(&self, peer: IpAddr, user: String) {
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        if right.len() < MAX_REMEMBERED {
            right.insert((peer, user));
        }
    }
}

/// A log-in of a peer that waits.
struct Turn<'a> {
    passwords: &'a Passwords,
    peer: IpAddr,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut waiting = self.passwords.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.peer);
            }
        }
    }
}

fn check_all(waiting: &Receiver<Check>) {
    // One memory for all, since an allocator would keep several.
    let mut memory = vec![Block::default(); Params::DEFAULT.block_count()];
    let nobody = nobodys_hash();
    for Check { password, hash, answer } in waiting {
        if answer.is_closed() {
            continue; // Whoever asked gave up.
        }
        let right = is_right(&password, hash.as_deref().unwrap_or(&nobody), &mut memory).unwrap_or(false);
        let _ = answer.send(right && hash.is_some()); // Whoever asked gave up meanwhile.
    }
}

/// A hash that no password has: an unknown user costs as much as a wrong password.
fn nobodys_hash() -> String {
    let salt = data_encoding::BASE64_NOPAD.encode(&fresh::<16>(&mut SystemRandom));
    let hash = data_encoding::BASE64_NOPAD.encode(&fresh::<32>(&mut SystemRandom));
    format!("$argon2id$v=19$m={},t={},p={}${salt}${hash}", Params::DEFAULT_M_COST, Params::DEFAULT_T_COST, Params::DEFAULT_P_COST)
}

/// Whether `password` has the hash in the PHC string `phc`, compared in constant time; none for a string that is not Argon2's or
/// asks for more memory than there is.
fn is_right(password: &str, phc: &str, memory: &mut [Block]) -> Option<bool> {
    let phc = PasswordHash::new(phc).ok()?;
    let algorithm = Algorithm::try_from(phc.algorithm).ok()?;
    let version = Version::try_from(phc.version?).ok()?;
    let params = Params::try_from(&phc).ok()?;
    let memory = memory.get_mut(..params.block_count())?;
    let mut salt = [0; 64];
    let salt = phc.salt?.decode_b64(&mut salt).ok()?;
    let expected = phc.hash?;
    let mut output = Zeroizing::new(vec![0; expected.len()]);
    Argon2::new(algorithm, version, params).hash_password_into_with_memory(password.as_bytes(), salt, &mut output, memory).ok()?;
    Some(Output::new(&output).ok()? == expected)
}

fn token_digest(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

impl<R: Repository> Server<R> {
    /// Logs in from `peer` (step 1002): user id and password to a bearer token of 32 random bytes, of which only the digest is kept.
    /// Wrong password and unknown user are the same [`Code::WrongCredentials`] at the same cost.
    pub async fn log_in(&self, request: LogIn, peer: IpAddr) -> Result<Session> {
        let (user, password) = (request.user, Zeroizing::new(request.password));
        if user.len() > MAX_NAME || password.len() > MAX_PASSWORD {
            return Err(Refusal::new(Code::TooLarge, "user id or password is longer than its limit"));
        }
        let (now, peer) = (self.now(), network_of(peer));
        self.passwords.admit(peer, &user, now)?;
        let turn = self.passwords.turn(peer)?;
        let credentials = self.repository.credentials(&user).await?;
        let (account, hash) = credentials.map(|c| (c.account, c.password)).unzip();
        if !self.passwords.check(password, hash).await? {
            self.passwords.note_wrong(peer, &user, now);
            return Err(Refusal::new(Code::WrongCredentials, "user id or password is wrong"));
        }
        drop(turn);
        self.passwords.note_right(peer, user);
        let account = account.ok_or_else(|| Refusal::new(Code::Internal, "nobody was logged in"))?;
        let token = data_encoding::BASE64URL_NOPAD.encode(&*Zeroizing::new(fresh::<32>(&mut SystemRandom)));
        let expires_at = now.after(self.policy.session_seconds);
        self.repository.open_session(account, token_digest(&token), expires_at, SESSIONS).await?;
        Ok(Session { token, expires_at })
    }

    /// Who holds the bearer token, of a log-in or an API token, that `peer` shows; [`Code::Unauthenticated`]. A peer that showed many
    /// which nobody has waits for each look-up.
    pub async fn authenticate(&self, token: &str, peer: IpAddr) -> Result<Principal> {
        let peer = network_of(peer);
        if let Some(pause) = self.strangers.pause(peer, self.now()) {
            tokio::time::sleep(pause).await;
        }
        let (digest, now) = (token_digest(token), self.now());
        let principal = match token.starts_with(PREFIX) {
            true => self.repository.token(digest, now).await?,
            false => self.repository.session(digest, now).await?,
        };
        principal.ok_or_else(|| {
            self.strangers.note(peer, now);
            Refusal::new(Code::Unauthenticated, "the bearer token is unknown or ran out")
        })
    }

    /// Ends the session of the token.
    pub async fn log_out(&self, token: &str) -> Result<()> {
        self.repository.close_session(token_digest(token)).await
    }

    /// The account as its owner sees it.
    pub async fn account(&self, principal: Principal) -> Result<Account> {
        let balances = self.repository.balances(principal.account).await?;
        let sales = match principal.role {
            AccountRole::Vendor => sales(self.repository.books_of(principal.account).await?),
            _ => Vec::new(),
        };
        Ok(Account { account: principal.account, user: principal.user, role: principal.role, balances, sales })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_matches_its_own_hash_and_nobodys_never() {
        let passwords = Passwords::new().expect("passwords");
        let hash = hash_password("correct horse").expect("a hash");
        assert!(hash.starts_with("$argon2id$"));
        let secret = |text: &str| Zeroizing::new(text.to_owned());
        assert!(passwords.check(secret("correct horse"), Some(hash.clone())).await.expect("checked"));
        assert!(!passwords.check(secret("battery staple"), Some(hash)).await.expect("checked"));
        assert!(!passwords.check(secret("correct horse"), None).await.expect("checked"));
    }

    #[test]
    fn wrong_passwords_are_counted_by_user_and_address_and_forgotten() {
        let passwords = Passwords::new().expect("passwords");
        let peer: IpAddr = [127, 0, 0, 1].into();
        for _ in 0..WRONG_OF_A_USER {
            passwords.admit(peer, "ann", Time(100)).expect("not yet too many");
            passwords.note_wrong(peer, "ann", Time(100));
        }
        assert_eq!(passwords.admit(peer, "ann", Time(100)).expect_err("too many").code, Code::RateLimited);
        passwords.admit(peer, "bob", Time(100)).expect("another user");
        passwords.admit([127, 0, 0, 2].into(), "ann", Time(100)).expect("ann herself, from elsewhere");
        passwords.admit(peer, "ann", Time(100 + WINDOW)).expect("a minute later");
    }

    #[test]
    fn one_peer_has_no_more_log_ins_waiting_than_its_share_and_gets_its_places_back() {
        let passwords = Passwords::new().expect("passwords");
        let (peer, other): (IpAddr, IpAddr) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
        let mut turns: Vec<_> = (0..WAITING_OF_A_PEER).map(|_| passwords.turn(peer).expect("a place")).collect();
        assert_eq!(passwords.turn(peer).err().expect("its share is taken").code, Code::Busy);
        drop(passwords.turn(other).expect("another peer"));
        turns.pop();
        drop(passwords.turn(peer).expect("free again"));
        drop(turns);
        assert!(passwords.waiting.lock().expect("whole").is_empty());
    }

    #[test]
    fn guesses_from_many_addresses_are_stopped_and_keep_nobody_out_of_where_he_logged_in_before() {
        let passwords = Passwords::new().expect("passwords");
        let home: IpAddr = [127, 0, 0, 1].into();
        passwords.note_right(home, "ann".to_owned());
        let address = |n: u32| IpAddr::from((0x0a00_0000 + n).to_be_bytes());
        for n in 0..WRONG_OF_AN_ACCOUNT {
            passwords.admit(address(n), "ann", Time(100)).expect("not yet too many");
            passwords.note_wrong(address(n), "ann", Time(100));
        }
        let refused = passwords.admit(address(9999), "ann", Time(100)).expect_err("too many from everywhere");
        assert_eq!((refused.code, refused.retry_after), (Code::RateLimited, Some(WINDOW)));
        passwords.admit(home, "ann", Time(100)).expect("ann herself, where she logged in before");
        passwords.admit(address(9999), "bob", Time(100)).expect("another user");
        passwords.admit(address(9999), "ann", Time(100 + WINDOW)).expect("a minute later");
        passwords.admit(address(9999), "ann", Time(10)).expect("after the clock was set back");
    }

    #[test]
    fn accounts_with_poor_names_or_passwords_are_not_made() {
        for (user, password) in [("", "long enough"), ("a b", "long enough"), ("a\n", "long enough"), ("ann", "short")] {
            assert_eq!(new_account(user, AccountRole::Customer, password, Time(0)).err().expect(user).code, Code::Malformed);
        }
    }
}
