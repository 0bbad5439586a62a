//! A proxy between a job and its real S3 server, on a port that the kernel chose, that does to requests what bad days do:
//! it is slow, throttles, answers 500, cuts connections, or lists new files late. It counts what it did.
#![expect(clippy::expect_used, reason = "the harness of tests ends a test by a panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::http::{copy_body, read_body, read_message};
use crate::wait;

/// What is done to requests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    /// They pass.
    None,
    /// Each waits, and bodies pass at so many bytes a second.
    Slow { latency: Duration, bytes_per_second: u64 },
    /// Of so many requests one passes, the others get this answer.
    Answer { status: u16, code: &'static str, one_passes_of: u64 },
    /// So many uploads of this size or more are cut in the middle.
    CutUpload { times: u64, least: u64 },
    /// So many downloads of this size or more are cut in the middle, none of them twice.
    CutDownload { times: u64, least: u64 },
    /// A listing does not show what was written less than so long ago.
    ListsLate { by: Duration },
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    fault: Mutex<Fault>,
    /// Requests since the fault was set, and those that it hit.
    seen: AtomicU64,
    fired: AtomicU64,
    /// When each path was written.
    written: Mutex<BTreeMap<String, Instant>>,
    /// What was downloaded and cut.
    cut: Mutex<BTreeSet<String>>,
    stopped: AtomicBool,
}

/// See the module's text. Connections end with the processes that opened them.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// In front of a server at `host:port`.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port for the proxy");
        let address = listener.local_addr().expect("a bound listener has an address");
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            fault: Mutex::new(Fault::None),
            seen: AtomicU64::new(0),
            fired: AtomicU64::new(0),
            written: Mutex::default(),
            cut: Mutex::default(),
            stopped: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.stopped.load(Ordering::SeqCst) {
                    break;
                }
                let shared = Arc::clone(&accepting);
                // A connection that breaks is what clients have to live with.
                std::thread::spawn(move || while shared.serve(&client).is_ok_and(|goes_on| goes_on) {});
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Does this from now on, and counts anew.
    pub fn set(&self, fault: Fault) {
        let mut current = lock(&self.shared.fault);
        *current = fault;
        self.shared.seen.store(0, Ordering::SeqCst);
        self.shared.fired.store(0, Ordering::SeqCst);
    }

    /// How many requests the fault has hit.
    pub fn fired(&self) -> u64 {
        self.shared.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    /// One request; false when the connection is not to be used again.
    fn serve(&self, client: &TcpStream) -> io::Result<bool> {
        let Some(request) = read_message(client)? else { return Ok(false) };
        let fault = *lock(&self.fault);
        let number = self.seen.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Answer { status, code, one_passes_of } if !(number + 1).is_multiple_of(one_passes_of) => {
                self.fired.fetch_add(1, Ordering::SeqCst);
                copy_body(&request, client, &mut io::sink(), None)?;
                return refuse(client, status, code).map(|()| true);
            }
            Fault::CutUpload { times, least }
                if request.length() >= least && request.method() == "PUT" && self.fires_within(times) =>
            {
                let mut server = TcpStream::connect(&self.upstream)?;
                server.write_all(&request.head)?;
                io::copy(&mut { client }.take(request.length() / 2), &mut server)?;
                return cut(client, &server);
            }
            Fault::Slow { latency, .. } => {
                self.fired.fetch_add(1, Ordering::SeqCst);
                wait::pace(latency);
            }
            _ => {}
        }
        let pace = match fault {
            Fault::Slow { bytes_per_second, .. } => Some(bytes_per_second),
            _ => None,
        };
        // A connection of its own for each: what the server does to idle ones is none of the faults that are wanted.
        let mut server = TcpStream::connect(&self.upstream)?;
        server.write_all(&request.head)?;
        copy_body(&request, client, &mut server, pace)?;
        let Some(answer) = read_message(&server)? else { return cut(client, &server) };
        let mut out = client;
        if answer.succeeded() && (request.method() == "PUT" || request.method() == "POST") {
            lock(&self.written).insert(request.path().to_owned(), Instant::now());
        }
        if let Fault::ListsLate { by } = fault
            && request.method() == "GET"
            && request.target().contains("list-type=2")
        {
            let listing = String::from_utf8_lossy(&read_body(&answer, &server)?).into_owned();
            let shown = self.late(&listing, request.path(), by);
            self.fired.fetch_add(u64::from(shown != listing), Ordering::SeqCst);
            out.write_all(&answer.head_with_length(shown.len()))?;
            out.write_all(shown.as_bytes())?;
            return Ok(true);
        }
        if let Fault::CutDownload { times, least } = fault
            && request.method() == "GET"
            && answer.length() >= least
            && lock(&self.cut).insert(request.target().to_owned())
            && self.fires_within(times)
        {
            out.write_all(&answer.head)?;
            io::copy(&mut { &server }.take(answer.length() / 2), &mut out)?;
            return cut(client, &server);
        }
        out.write_all(&answer.head)?;
        if request.method() != "HEAD" {
            copy_body(&answer, &server, &mut out, pace)?;
        }
        Ok(true)
    }

    /// Counts one more, up to `times`.
    fn fires_within(&self, times: u64) -> bool {
        let next = |fired| (fired < times).then_some(fired + 1);
        self.fired.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).is_ok()
    }

    /// A listing without what was written lately.
    fn late(&self, listing: &str, bucket: &str, by: Duration) -> String {
        let written = lock(&self.written);
        let bucket = format!("{}/", bucket.trim_end_matches('/'));
        let fresh = |at: &Instant| at.elapsed() < by;
        let file_is_fresh = |key: &str| written.get(&format!("{bucket}{key}")).is_some_and(fresh);
        let folder_is_fresh = |prefix: &str| {
            let full = format!("{bucket}{prefix}");
            let mut below = written.iter().filter(|(path, _)| path.starts_with(&full)).peekable();
            below.peek().is_some() && below.all(|(_, at)| fresh(at))
        };
        let without_files = without(listing, "Contents", "Key", file_is_fresh);
        without(&without_files, "CommonPrefixes", "Prefix", folder_is_fresh)
    }
}

/// The text without the elements whose `name` is hidden.
fn without(text: &str, element: &str, name: &str, hidden: impl Fn(&str) -> bool) -> String {
    let (open, close) = (format!("<{element}>"), format!("</{element}>"));
    let mut kept = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(&open) {
        let (inside, behind) = after.split_once(&close).unwrap_or((after, ""));
        let value = inside.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once("</"));
        kept.push_str(before);
        if !value.is_some_and(|(value, _)| hidden(value)) {
            kept.push_str(&format!("{open}{inside}{close}"));
        }
        rest = behind;
    }
    kept + rest
}

/// An answer of S3's kind that is a refusal.
fn refuse(client: &TcpStream, status: u16, code: &str) -> io::Result<()> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>of a test</Message></Error>"
    );
    let head =
        format!("HTTP/1.1 {status} {code}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\n\r\n", body.len());
    { client }.write_all(format!("{head}{body}").as_bytes())
}

fn cut(client: &TcpStream, server: &TcpStream) -> io::Result<bool> {
    let _ = server.shutdown(Shutdown::Both);
    let _ = client.shutdown(Shutdown::Both);
    Ok(false)
}
