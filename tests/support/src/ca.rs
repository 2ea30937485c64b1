//! A CA as istiod is one, alone: the certificate service over gRPC, TLS and a token, on a thread of its own. What it
//! answers is a `Script` that a test may change at any time; what it was asked is kept in `Seen`.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use crate::authority::ServerCertificate;
use crate::{Result, RigError};

mod service;

pub(crate) use service::METHOD;
pub use service::{Answer, Script, Seen, Service, bundle, status};

/// A running CA; ended when dropped.
pub struct Ca {
    address: SocketAddr,
    pub service: Service,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Ca {
    /// On a port of its own at 127.0.0.1.
    pub fn start(certificate: ServerCertificate, script: Script) -> Result<Self> {
        let mut ca = Self {
            address: (Ipv4Addr::LOCALHOST, 0).into(),
            service: Service::new(script),
            running: None,
        };
        ca.restart(certificate)?;
        Ok(ca)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and every connection.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            drop(stop);
            // It ended by a panic, which the test harness has printed.
            let _ = thread.join();
        }
        self.service.disconnected();
    }

    /// At the same address, with another certificate of the server.
    pub fn restart(&mut self, certificate: ServerCertificate) -> Result<()> {
        self.stop();
        let failed = |error: std::io::Error| RigError::new("starting the CA", error);
        let listener = std::net::TcpListener::bind(self.address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        self.address = listener.local_addr().map_err(failed)?;
        let acceptor = acceptor(certificate)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let service = self.service.clone();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            LocalSet::new().block_on(&runtime, async move {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, acceptor, service) => {}
                }
            });
        });
        self.running = Some((stop, thread));
        Ok(())
    }
}

impl Drop for Ca {
    fn drop(&mut self) {
        self.stop();
    }
}

/// TLS of a server that speaks HTTP/2.
pub(crate) fn acceptor(certificate: ServerCertificate) -> Result<TlsAcceptor> {
    let chain: Vec<CertificateDer<'static>> = certificate.chain;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, certificate.key)
        });
    let mut config = config.map_err(|error| RigError::new("configuring a server's TLS", error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, service: Service) {
    let listener = TcpListener::from_std(listener).expect("invariant: it was just made");
    // A failing accept ends the CA, and with it the test.
    while let Ok((stream, _)) = listener.accept().await {
        tokio::task::spawn_local(serve(stream, acceptor.clone(), service.clone()));
    }
}

/// Until the client leaves; what it does wrong ends only its own connection.
async fn serve(stream: TcpStream, acceptor: TlsAcceptor, service: Service) {
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    service.connected();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let service = service.clone();
        tokio::task::spawn_local(async move {
            // The client may have gone meanwhile.
            let _ = service.answer(request, respond).await;
        });
    }
}
