use std::{
    io::{BufRead, BufReader},
    os::unix::fs::FileTypeExt,
};

use serde_json::json;

use super::*;
use crate::control::view::Word;

fn answer(request: &Request) -> Value {
    match request {
        Request::Word(Word::Ping) => json!({ "ok": "pong" }),
        // Larger than any socket's buffer.
        Request::Word(Word::Version) => json!({ "ok": "v".repeat(4 << 20) }),
        _ => refusal(&"not here"),
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.sock");
    (dir, path)
}

fn connect(path: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_nonblocking(true).unwrap();
    BufReader::new(stream)
}

/// A line of the client, if there is a whole one: `None` when the server hung up.
fn line(server: &mut Server, client: &mut BufReader<UnixStream>) -> Option<String> {
    let mut text = Vec::new();
    for _ in 0..100_000 {
        server.serve(&mut answer);
        match client.read_until(b'\n', &mut text) {
            Ok(_) if text.ends_with(b"\n") => return Some(String::from_utf8(text).unwrap()),
            Ok(_) => return None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("no answer");
}

#[test]
fn a_line_gets_a_line() {
    let (_dir, path) = place();
    let mut server = Server::bind(&path).unwrap();
    let made = fs::metadata(&path).unwrap();
    assert!(made.file_type().is_socket());
    assert_eq!(made.permissions().mode() & 0o777, 0o600);
    let mut client = connect(&path);
    // In pieces, and two at once.
    for piece in ["\"pi", "ng\"", "\n\"ping\"\n"] {
        client.get_mut().write_all(piece.as_bytes()).unwrap();
        server.serve(&mut answer);
    }
    for _ in 0..2 {
        assert_eq!(line(&mut server, &mut client).unwrap(), "{\"ok\":\"pong\"}\n");
    }
    client.get_mut().write_all(b"nonsense\n\xff\xfe\n\n\"ping\"\n").unwrap();
    for _ in 0..3 {
        assert!(line(&mut server, &mut client).unwrap().contains("no request"));
    }
    assert!(line(&mut server, &mut client).unwrap().contains("pong"));
    // Who sends no more still gets the answer, then the end.
    client.get_mut().write_all(b"\"ping\"\n").unwrap();
    client.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(line(&mut server, &mut client).unwrap().contains("pong"));
    assert_eq!(line(&mut server, &mut client), None);
    drop(server);
    assert!(!path.exists(), "the file goes with the server");
}

#[test]
fn a_long_answer_arrives_whole() {
    let (_dir, path) = place();
    let mut server = Server::bind(&path).unwrap();
    let mut client = connect(&path);
    client.get_mut().write_all(b"\"version\"\n\"ping\"\n").unwrap();
    let long: Value = serde_json::from_str(&line(&mut server, &mut client).unwrap()).unwrap();
    assert_eq!(long["ok"].as_str().unwrap().len(), 4 << 20);
    assert!(line(&mut server, &mut client).unwrap().contains("pong"));
}

#[test]
fn a_line_without_end_is_refused() {
    let (_dir, path) = place();
    let mut server = Server::bind(&path).unwrap();
    let mut client = connect(&path);
    client.get_mut().write_all(&[b'x'; MAX_LINE + 1]).unwrap();
    assert!(line(&mut server, &mut client).unwrap().contains("at most"));
    assert_eq!(line(&mut server, &mut client), None);
    assert!(server.clients.is_empty());
}

#[test]
fn who_does_not_read_holds_one_answer_and_hinders_nobody() {
    let (_dir, path) = place();
    let mut server = Server::bind(&path).unwrap();
    let mut deaf = connect(&path);
    for _ in 0..100 {
        deaf.get_mut().write_all(b"\"version\"\n").unwrap();
    }
    let mut client = connect(&path);
    for _ in 0..100 {
        client.get_mut().write_all(b"\"ping\"\n").unwrap();
        assert!(line(&mut server, &mut client).unwrap().contains("pong"));
    }
    let held: usize = server.clients.iter().map(|c| c.output.len() + c.input.len()).sum();
    assert!(held < 5 << 20, "{held} bytes are held");
    // In the end it goes: as if its last action were long ago.
    for client in &mut server.clients {
        client.active -= 2 * PATIENCE;
    }
    server.serve(&mut answer);
    assert!(server.clients.is_empty());
}

#[test]
fn the_silent_make_room() {
    let (_dir, path) = place();
    let mut server = Server::bind(&path).unwrap();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.extend((0..ACCEPTS).map(|_| connect(&path)));
        server.serve(&mut answer);
        assert!(server.clients.len() <= MAX_CLIENTS);
    }
    let mut client = connect(&path);
    client.get_mut().write_all(b"\"ping\"\n").unwrap();
    assert!(line(&mut server, &mut client).unwrap().contains("pong"));
}

#[test]
fn a_living_server_is_not_replaced_and_a_dead_one_is() {
    let (_dir, path) = place();
    let server = Server::bind(&path).unwrap();
    assert!(matches!(Server::bind(&path), Err(SocketError::Taken(_))));
    // As a killed process leaves it: the file without anybody behind it.
    let identity = server.identity;
    fs::hard_link(&path, path.with_extension("kept")).unwrap();
    drop(server);
    fs::rename(path.with_extension("kept"), &path).unwrap();
    let second = Server::bind(&path).unwrap();
    assert_ne!(second.identity, identity);
    assert!(UnixStream::connect(&path).is_ok());
    assert!(matches!(Server::bind(Path::new("/nonexistent/control.sock")), Err(SocketError::Make { .. })));
}
