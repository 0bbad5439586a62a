//! As much of HTTP/1.1 as a proxy needs: heads, lengths, chunks.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use crate::wait;

/// Longest head that is read.
const MOST: usize = 64 << 10;

/// Request or answer without its body.
#[derive(Debug)]
pub(crate) struct Message {
    /// Everything up to the empty line, as it came.
    pub(crate) head: Vec<u8>,
    text: String,
}

impl Message {
    fn word(&self, n: usize) -> &str {
        self.text.lines().next().and_then(|line| line.split(' ').nth(n)).unwrap_or_default()
    }

    /// Method of a request.
    pub(crate) fn method(&self) -> &str {
        self.word(0)
    }

    /// Path and query of a request.
    pub(crate) fn target(&self) -> &str {
        self.word(1)
    }

    /// Its path.
    pub(crate) fn path(&self) -> &str {
        self.target().split('?').next().unwrap_or_default()
    }

    /// Of an answer.
    pub(crate) fn succeeded(&self) -> bool {
        self.word(1).starts_with('2')
    }

    fn header(&self, name: &str) -> Option<&str> {
        let of = |line: &'_ str| line.split_once(':').filter(|(key, _)| key.eq_ignore_ascii_case(name)).is_some();
        let line = self.text.lines().skip(1).find(|line| of(line))?;
        line.split_once(':').map(|(_, value)| value.trim())
    }

    /// Bytes of the body, where its head says them.
    pub(crate) fn length(&self) -> u64 {
        self.header("content-length").and_then(|n| n.parse().ok()).unwrap_or_default()
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    /// The head for a body of another length.
    pub(crate) fn head_with_length(&self, length: usize) -> Vec<u8> {
        let kept = self.text.lines().filter(|line| {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            !line.is_empty() && name != "content-length" && name != "transfer-encoding"
        });
        let lines: Vec<&str> = kept.collect();
        format!("{}\r\ncontent-length: {length}\r\n\r\n", lines.join("\r\n")).into_bytes()
    }
}

/// The next head; `None` when the connection ends instead.
pub(crate) fn read_message(mut from: &TcpStream) -> io::Result<Option<Message>> {
    let mut head = vec![];
    let mut byte = [0];
    // Byte by byte, because what follows belongs to somebody else; these are tests on one machine.
    while !head.ends_with(b"\r\n\r\n") {
        if from.read(&mut byte)? == 0 || head.len() > MOST {
            return Ok(None);
        }
        head.extend_from_slice(&byte);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    Ok(Some(Message { head, text }))
}

/// Passes the body on as it is, at a pace in bytes a second if one is given.
pub(crate) fn copy_body(
    message: &Message,
    mut from: &TcpStream,
    to: &mut impl Write,
    pace: Option<u64>,
) -> io::Result<()> {
    if message.is_chunked() {
        return each_chunk(from, |raw, _| to.write_all(raw));
    }
    let mut left = message.length();
    let piece = pace.map_or(64 << 10, |pace| (pace / 20).max(1));
    let mut buffer = vec![0; piece as usize];
    while left > 0 {
        let most = (left.min(piece)) as usize;
        let n = from.read(buffer.get_mut(..most).unwrap_or_default())?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if pace.is_some() {
            wait::pace(std::time::Duration::from_millis(50));
        }
        to.write_all(buffer.get(..n).unwrap_or_default())?;
        left -= n as u64;
    }
    Ok(())
}

/// The body itself.
pub(crate) fn read_body(message: &Message, mut from: &TcpStream) -> io::Result<Vec<u8>> {
    let mut body = vec![];
    if message.is_chunked() {
        each_chunk(from, |_, data| {
            body.extend_from_slice(data);
            Ok(())
        })?;
    } else {
        body.resize(message.length() as usize, 0);
        from.read_exact(&mut body)?;
    }
    Ok(body)
}

/// Calls `each` with a chunk as it came and with its data, up to the last one.
fn each_chunk(mut from: &TcpStream, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
    loop {
        let mut line = vec![];
        let mut byte = [0];
        while !line.ends_with(b"\r\n") {
            from.read_exact(&mut byte)?;
            line.extend_from_slice(&byte);
        }
        let digits = String::from_utf8_lossy(&line).trim().split(';').next().unwrap_or_default().to_owned();
        let size = usize::from_str_radix(&digits, 16).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        // The data and the end of its line.
        let mut data = vec![0; size + 2];
        from.read_exact(&mut data)?;
        each(&[line, data.clone()].concat(), data.get(..size).unwrap_or_default())?;
        if size == 0 {
            return Ok(());
        }
    }
}
