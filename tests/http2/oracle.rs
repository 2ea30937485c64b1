//! The other side: the `h2` crate as client and as echoing server.

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use tokio::io::DuplexStream;
use tokio::task::JoinHandle;

use crate::session::pattern;

pub struct H2Server {
    pub window_bytes: u32,
    pub frame_bytes: u32,
    pub streams_max: u32,
}

impl Default for H2Server {
    fn default() -> Self {
        Self {
            window_bytes: 65_535,
            frame_bytes: 16_384,
            streams_max: 200,
        }
    }
}

impl H2Server {
    pub async fn accept(self, io: DuplexStream) -> server::Connection<DuplexStream, Bytes> {
        server::Builder::new()
            .initial_window_size(self.window_bytes)
            .initial_connection_window_size(self.window_bytes.max(65_535))
            .max_frame_size(self.frame_bytes)
            .max_concurrent_streams(self.streams_max)
            .handshake(io)
            .await
            .expect("server handshake")
    }

    /// Echoes every tunnel until the client is done. Returns how many there were.
    pub async fn echo(self, io: DuplexStream) -> usize {
        let mut connection = self.accept(io).await;
        let mut streams = Vec::new();
        while let Some(stream) = connection.accept().await {
            let (request, respond) = stream.expect("stream");
            streams.push(tokio::spawn(echo_stream(request, respond)));
        }
        let count = streams.len();
        for stream in streams {
            stream.await.expect("echo");
        }
        count
    }
}

pub async fn echo_stream(request: http::Request<RecvStream>, mut respond: server::SendResponse<Bytes>) {
    assert_eq!(request.method(), http::Method::CONNECT);
    assert_eq!(request.uri().authority().expect("authority"), "10.0.0.1:80");
    let mut send = respond
        .send_response(http::Response::new(()), false)
        .expect("response");
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let data = data.expect("data");
        body.flow_control().release_capacity(data.len()).expect("credit");
        send.send_data(data, false).expect("echo");
    }
    send.send_data(Bytes::new(), true).expect("end");
}

pub struct H2Client {
    pub window_bytes: u32,
    pub frame_bytes: u32,
}

impl Default for H2Client {
    fn default() -> Self {
        Self {
            window_bytes: 65_535,
            frame_bytes: 16_384,
        }
    }
}

pub struct Client(client::SendRequest<Bytes>);

impl H2Client {
    pub async fn handshake(self, io: DuplexStream) -> (Client, client::Connection<DuplexStream, Bytes>) {
        let (client, driver) = client::Builder::new()
            .initial_window_size(self.window_bytes)
            .initial_connection_window_size(self.window_bytes.max(65_535))
            .max_frame_size(self.frame_bytes)
            // Until our SETTINGS say otherwise.
            .initial_max_send_streams(1)
            .handshake(io)
            .await
            .expect("client handshake");
        (Client(client), driver)
    }

    pub async fn connect(self, io: DuplexStream) -> (Client, JoinHandle<Result<(), h2::Error>>) {
        let (client, driver) = self.handshake(io).await;
        (client, tokio::spawn(driver))
    }

    /// One tunnel per size, all at once. Returns what came back on each.
    pub async fn send_all(self, io: DuplexStream, sizes: Vec<usize>) -> Vec<Vec<u8>> {
        let (client, driver) = self.connect(io).await;
        let mut tunnels = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let mut client = Client(client.0.clone());
            tunnels.push(tokio::spawn(async move {
                let (mut send, mut body) = client.tunnel().await;
                send.send_data(Bytes::from(pattern(number as u32, size)), true)
                    .expect("send");
                let mut echoed = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.expect("echo");
                    body.flow_control().release_capacity(data.len()).expect("credit");
                    echoed.extend_from_slice(&data);
                }
                echoed
            }));
        }
        let mut all = Vec::new();
        for tunnel in tunnels {
            all.push(tunnel.await.expect("tunnel"));
        }
        drop(client);
        driver.await.expect("driver").expect("an orderly end");
        all
    }
}

impl Client {
    pub async fn tunnel(&mut self) -> (SendStream<Bytes>, RecvStream) {
        self.try_tunnel().await.expect("tunnel")
    }

    pub async fn try_tunnel(&mut self) -> Result<(SendStream<Bytes>, RecvStream), h2::Error> {
        let request = http::Request::connect("10.0.0.1:80").body(()).expect("request");
        // Ready means that the server's limit of streams allows one more.
        self.0 = self.0.clone().ready().await?;
        let (response, send) = self.0.send_request(request, false)?;
        let response = response.await?;
        assert_eq!(response.status(), 200);
        Ok((send, response.into_body()))
    }
}

/// The next bytes of a tunnel, credited.
pub async fn read(body: &mut RecvStream, size: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < size {
        let data = body.data().await.expect("more bytes").expect("data");
        body.flow_control().release_capacity(data.len()).expect("credit");
        read.extend_from_slice(&data);
    }
    read
}

/// The end of a tunnel, which may come with an empty frame.
pub async fn read_end(body: &mut RecvStream) {
    while let Some(data) = body.data().await {
        assert_eq!(data.expect("data"), "");
    }
}
