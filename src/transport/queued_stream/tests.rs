use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::transport::queued_stream::*;

/// Returns a connection that has carried one request and one response, its handle, and the
/// socket of its peer.
async fn connection_after_one_exchange() -> (QueuedStream, Arc<ConnectionHandle>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let local_socket = TcpStream::connect(listener.local_addr().expect("an address"))
        .await
        .expect("a connection");
    let (mut remote_socket, _) = listener.accept().await.expect("a connection");
    let mut connection = open(Socket::Tcp(local_socket), None);
    let handle = connection.handle().clone();
    connection.write_all(b"one").await.expect("it queues");
    handle.flush().await.expect("it is taken");
    let mut reply = [0; 3];
    remote_socket
        .read_exact(&mut reply)
        .await
        .expect("it arrives");
    remote_socket.write_all(b"yes").await.expect("it is taken");
    connection.read_exact(&mut reply).await.expect("it arrives");
    (connection, handle, remote_socket)
}

/// Writes a request, and asserts that the connection ends or fails without a response.
async fn write_and_expect_no_response(connection: &mut QueuedStream, handle: &ConnectionHandle) {
    connection.write_all(b"two").await.expect("it queues");
    // The write can succeed or fail, depending on when the close arrives.
    _ = handle.flush().await;
    let mut rest = Vec::new();
    _ = connection.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
}

#[tokio::test]
async fn bytes_sent_after_the_peer_closed_are_known_to_be_unread() {
    let (mut connection, handle, remote_socket) = connection_after_one_exchange().await;
    let before = handle.bytes_sent();
    drop(remote_socket);
    write_and_expect_no_response(&mut connection, &handle).await;
    assert!(handle.peer_closed_before(before));
}

#[tokio::test]
async fn bytes_read_before_the_peer_closed_are_not_reported_as_unread() {
    let (mut connection, handle, mut remote_socket) = connection_after_one_exchange().await;
    let before = handle.bytes_sent();
    let reading = tokio::spawn(async move {
        let mut reply = [0; 3];
        remote_socket
            .read_exact(&mut reply)
            .await
            .expect("it arrives");
    });
    write_and_expect_no_response(&mut connection, &handle).await;
    reading.await.expect("it ended");
    assert!(!handle.peer_closed_before(before));
}

#[tokio::test]
async fn a_reset_does_not_prove_that_bytes_were_unread() {
    let (mut connection, handle, mut remote_socket) = connection_after_one_exchange().await;
    let before = handle.bytes_sent();
    let reading = tokio::spawn(async move {
        let mut byte = [0; 1];
        remote_socket
            .read_exact(&mut byte)
            .await
            .expect("it arrives");
        // Closing a socket with unread bytes sends a reset.
    });
    write_and_expect_no_response(&mut connection, &handle).await;
    reading.await.expect("it ended");
    assert!(!handle.peer_closed_before(before));
}

/// Returns the handle of a new connection, its stream, and the socket of its peer.
async fn new_connection() -> (QueuedStream, Arc<ConnectionHandle>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let peer = TcpStream::connect(listener.local_addr().expect("an address"))
        .await
        .expect("a connection");
    let (accepted, _) = listener.accept().await.expect("a connection");
    let connection = open(Socket::Tcp(accepted), None);
    let handle = connection.handle().clone();
    (connection, handle, peer)
}

#[tokio::test]
async fn bytes_do_not_arrive_on_a_new_connection_before_its_peer_has_sent_some() {
    let (_connection, handle, mut peer) = new_connection().await;
    // The exchange on another connection gives the kernel time to report the new one.
    let no_bytes = tokio::select! {
        biased;
        _ = handle.bytes_arrived() => false,
        _ = connection_after_one_exchange() => true,
    };
    assert!(no_bytes);
    peer.write_all(b"one").await.expect("it is taken");
    handle.bytes_arrived().await.expect("they arrive");
}

#[tokio::test]
async fn a_connection_that_was_shut_down_does_not_return_the_bytes_it_received() {
    let (mut connection, handle, mut peer) = new_connection().await;
    peer.write_all(b"one").await.expect("it is taken");
    handle.bytes_arrived().await.expect("they arrive");
    handle.shut_down();
    let read = connection.read(&mut [0; 3]).await;
    assert_eq!(
        read.expect_err("it is closed").kind(),
        io::ErrorKind::ConnectionAborted
    );
}
