//! What every transport promises, run against each: TCP, shared memory on one host, and gRPC where it is built in.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use tfos_ps::memory::Arena;
use tfos_ps::reference::Random;
use tfos_ps::transport::{Acceptor, Connection, SharedAcceptor, Tcp, TcpAcceptor, Transport, connect_shared};
#[cfg(feature = "grpc")]
use tfos_ps::transport::{Grpc, GrpcAcceptor};

use crate::cluster::DEADLINE;

/// Names the transport and the address in a child process that plays the peer.
const CHILD: &str = "TFOS_TEST_CONTRACT_CHILD";

#[cfg(feature = "grpc")]
const KINDS: &[&str] = &["tcp", "shared", "grpc"];
#[cfg(not(feature = "grpc"))]
const KINDS: &[&str] = &["tcp", "shared"];

type Ends = (Box<dyn Connection>, Box<dyn Connection>);

fn listen(kind: &str) -> (Box<dyn Acceptor>, String) {
    if kind == "tcp" {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        return (Box::new(TcpAcceptor::new(listener).unwrap()), address);
    }
    #[cfg(feature = "grpc")]
    if kind == "grpc" {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        return (Box::new(GrpcAcceptor::new(listener).unwrap()), address);
    }
    let acceptor = SharedAcceptor::new(Arena::new().unwrap()).unwrap();
    let name = acceptor.name().to_owned();
    (Box::new(acceptor), name)
}

fn connect(kind: &str, address: &str) -> Box<dyn Connection> {
    #[cfg(feature = "grpc")]
    if kind == "grpc" {
        return Grpc.connect(address, DEADLINE).unwrap();
    }
    if kind == "tcp" {
        Tcp.connect(address, DEADLINE).unwrap()
    } else {
        connect_shared(address, "peer", DEADLINE).unwrap()
    }
}

/// The test for each transport, with the two ends of a connection.
fn each(test: impl Fn(Ends, &str)) {
    for kind in KINDS.iter().copied() {
        let (acceptor, address) = listen(kind);
        let connected = thread::scope(|scope| {
            let accepted = scope.spawn(move || acceptor.accept().unwrap());
            let connected = connect(kind, &address);
            (connected, accepted.join().unwrap())
        });
        test(connected, kind);
    }
}

fn send(connection: &mut dyn Connection, bytes: &[u8]) -> std::io::Result<()> {
    connection.send(&mut [IoSlice::new(bytes)])
}

fn recv(connection: &mut dyn Connection, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    connection.recv(&mut [IoSliceMut::new(&mut bytes)])?;
    Ok(bytes)
}

#[test]
fn bytes_arrive_in_order_in_both_directions_at_once_however_they_are_cut() {
    each(|(a, b), kind| {
        // Larger than any buffer between the two, in pieces that fit nothing.
        let len = 20_000_003;
        let run = |mut connection: Box<dyn Connection>, seed: u64| {
            let mut writer = connection.split().unwrap();
            thread::scope(|scope| {
                let sent = scope.spawn(move || {
                    let mut random = Random::new(seed);
                    let data: Vec<u8> = (0..len).map(|i| (i * 7 + i / 253) as u8).collect();
                    let mut rest = data.as_slice();
                    while !rest.is_empty() {
                        let take = (1 + (random.uniform().abs() * 300_000.0) as usize).min(rest.len());
                        let (now, after) = rest.split_at(take);
                        let (x, y) = now.split_at(now.len() / 3);
                        writer.send(&mut [IoSlice::new(x), IoSlice::new(&[]), IoSlice::new(y)]).unwrap();
                        rest = after;
                    }
                });
                let mut random = Random::new(seed + 100);
                let mut at = 0;
                while at < len {
                    let take = (1 + (random.uniform().abs() * 900_000.0) as usize).min(len - at);
                    let (mut x, mut y) = (vec![0; take / 2], vec![0; take - take / 2]);
                    connection.recv(&mut [IoSliceMut::new(&mut x), IoSliceMut::new(&mut y)]).unwrap();
                    let good =
                        x.iter().chain(&y).enumerate().all(|(i, &byte)| byte == ((at + i) * 7 + (at + i) / 253) as u8);
                    assert!(good, "{kind}: wrong bytes after {at}");
                    at += take;
                }
                sent.join().unwrap();
            });
        };
        thread::scope(|scope| {
            scope.spawn(|| run(a, 1));
            run(b, 2);
        });
    });
}

#[test]
fn what_was_sent_before_the_end_arrives_and_half_a_frame_does_not() {
    each(|(mut a, mut b), kind| {
        send(&mut *a, &[1; 100]).unwrap();
        send(&mut *a, &[2; 40]).unwrap();
        drop(a);
        assert_eq!(recv(&mut *b, 100).unwrap(), [1; 100], "{kind}");
        assert_eq!(recv(&mut *b, 64).unwrap_err().kind(), ErrorKind::UnexpectedEof, "{kind}");
    });
}

#[test]
fn a_writer_without_a_reader_stops_at_a_bound_of_bytes_and_goes_on_when_it_is_read() {
    const BLOCK: usize = 1 << 16;
    const BLOCKS: usize = 1 << 10;
    each(|(mut a, mut b), kind| {
        let (told, blocks) = channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                for number in 0..BLOCKS {
                    send(&mut *a, &[number as u8; BLOCK]).unwrap();
                    told.send(()).unwrap();
                }
            });
            let mut sent = 0;
            // Blocked is who does nothing for so long; were it only slow, the bound below would hold all the same.
            loop {
                match blocks.recv_timeout(Duration::from_millis(300)) {
                    Ok(()) => sent += 1,
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => panic!("{kind}: all {BLOCKS} blocks went without a reader"),
                }
            }
            let bound = if kind == "shared" { 1 << 19 } else { 32 << 20 };
            assert!(sent * BLOCK <= bound, "{kind}: {sent} blocks");
            for number in 0..BLOCKS {
                assert!(recv(&mut *b, BLOCK).unwrap().iter().all(|&byte| byte == number as u8), "{kind}");
            }
        });
    });
}

#[test]
fn closing_ends_all_waiting_on_both_sides() {
    each(|(a, b), kind| {
        let closer = a.closer().unwrap();
        let mut after = a.split().unwrap();
        let end = |mut connection: Box<dyn Connection>| move || recv(&mut *connection, 1).unwrap_err().kind();
        thread::scope(|scope| {
            let waiting = [scope.spawn(end(a)), scope.spawn(end(b))];
            // Whenever it comes: before, while or after they begin to wait.
            closer.close();
            closer.close();
            assert_eq!(waiting.map(|thread| thread.join().unwrap()), [ErrorKind::UnexpectedEof; 2], "{kind}");
        });
        assert!(send(&mut *after, &[0]).is_err(), "{kind}: a closed connection takes nothing");
    });
    // One that waits for room, as nobody reads.
    each(|(a, mut b), _| {
        let closer = a.closer().unwrap();
        thread::scope(|scope| {
            let blocked = scope.spawn(move || while send(&mut *b, &[0; 1 << 16]).is_ok() {});
            closer.close();
            blocked.join().unwrap();
        });
    });
}

#[test]
fn a_time_limit_ends_a_wait_and_harms_nothing() {
    each(|(mut a, mut b), kind| {
        a.set_timeout(Some(Duration::from_millis(5))).unwrap();
        let error = recv(&mut *a, 8).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{kind}: {error}");
        a.set_timeout(None).unwrap();
        send(&mut *b, &[3; 8]).unwrap();
        assert_eq!(recv(&mut *a, 8).unwrap(), [3; 8], "{kind}");
    });
}

#[test]
fn an_acceptor_that_is_closed_ends_its_wait() {
    for kind in KINDS.iter().copied() {
        let (acceptor, _) = listen(kind);
        let closer = acceptor.closer().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || acceptor.accept().is_ok());
            closer.close();
            waiting.join().unwrap();
        });
    }
}

#[test]
fn who_comes_and_leaves_at_once_keeps_nobody_out() {
    // More often than failures of the listener are borne.
    let (acceptor, name) = listen("shared");
    thread::scope(|scope| {
        let accepted = scope.spawn(move || {
            let mut seen = 0;
            loop {
                let mut connection = acceptor.accept().unwrap();
                seen += 1;
                if recv(&mut *connection, 1).is_ok() {
                    return seen;
                }
            }
        });
        for _ in 0..150 {
            drop(connect_shared(&name, "peer", DEADLINE).unwrap());
            drop(UnixStream::connect_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap());
        }
        send(&mut *connect_shared(&name, "peer", DEADLINE).unwrap(), &[1]).unwrap();
        assert!(accepted.join().unwrap() > 150);
    });
}

/// Not a test: the peer of the next one, in a process of its own.
#[test]
fn a_peer_that_sends_half_a_frame_and_waits() {
    let Ok(child) = std::env::var(CHILD) else { return };
    let (kind, address) = child.split_once(' ').unwrap();
    let mut connection = connect(kind, address);
    send(&mut *connection, &[7; 1000]).unwrap();
    drop(recv(&mut *connection, 1));
}

#[test]
fn the_death_of_a_process_is_seen_at_once_and_leaves_nothing() {
    for kind in KINDS.iter().copied() {
        let (acceptor, address) = listen(kind);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "contract::a_peer_that_sends_half_a_frame_and_waits"])
            .env(CHILD, format!("{kind} {address}"))
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut connection = acceptor.accept().unwrap();
        connection.set_timeout(Some(DEADLINE)).unwrap();
        assert_eq!(recv(&mut *connection, 500).unwrap(), [7; 500], "{kind}");
        let mut half = connection.split().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || recv(&mut *half, 1000).unwrap_err().kind());
            child.kill().unwrap();
            assert_eq!(waiting.join().unwrap(), ErrorKind::UnexpectedEof, "{kind}");
        });
        child.wait().unwrap();
        while send(&mut *connection, &[0; 1 << 16]).is_ok() {}
        let left = std::fs::read_dir("/dev/shm").map(|entries| entries.flatten().map(|e| e.file_name())).unwrap();
        assert!(!left.into_iter().any(|name| name.to_string_lossy().contains("tfos")), "{kind}");
    }
}

#[test]
fn workers_of_this_host_choose_shared_memory_and_others_tcp() {
    use tfos_ps::transport::Nearest;
    use tfos_ps::wire::{self, Header, Kind};

    let cluster = crate::cluster::Cluster::start(1, 1);
    assert_eq!(Nearest.connect(&cluster.addresses[0], DEADLINE).unwrap().transport(), "shared memory");
    assert_eq!(Tcp.connect(&cluster.addresses[0], DEADLINE).unwrap().transport(), "TCP");

    // The socket's name of a ps on another host leads nowhere here.
    let (acceptor, address) = listen("tcp");
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut connection = acceptor.accept().unwrap();
            wire::expect(&mut *connection, Kind::Nearest, "Nearest").unwrap();
            wire::send(&mut *connection, Header::new(Kind::Nearest), b"tfos-ps-of-another-host", []).unwrap();
            assert_eq!(recv(&mut *connection, 3).unwrap(), b"ping"[..3]);
        });
        let mut connection = Nearest.connect(&address, DEADLINE).unwrap();
        assert_eq!(connection.transport(), "TCP");
        send(&mut *connection, b"pin").unwrap();
    });
}

#[test]
fn who_insists_on_shared_memory_gets_it_or_an_error_that_says_why() {
    use tfos_ps::transport::SameHost;
    use tfos_ps::wire::{self, Header, Kind};

    let cluster = crate::cluster::Cluster::start(1, 1);
    assert_eq!(SameHost.connect(&cluster.addresses[0], DEADLINE).unwrap().transport(), "shared memory");
    for (name, why) in [("", "it offers none"), ("tfos-ps-of-another-host", "refused")] {
        let (acceptor, address) = listen("tcp");
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut connection = acceptor.accept().unwrap();
                wire::expect(&mut *connection, Kind::Nearest, "Nearest").unwrap();
                wire::send(&mut *connection, Header::new(Kind::Nearest), name.as_bytes(), []).unwrap();
            });
            let error = SameHost.connect(&address, DEADLINE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(why) && error.to_string().contains(&address), "{error}");
        });
    }
}
