//! Layer `tls`: certified identities, handshakes and records of HBONE sessions.
//!
//! * `csr` asks a CA for a certificate and reads its answer.
//! * `Description` is what may be shown of a certificate of our own.
//! * `CertifiedIdentity` is a workload's certificate, private key and roots; private keys exist nowhere else.
//! * `Handshake` drives rustls without I/O and ends in an `Established`.
//! * `revocation` holds the lists of certificates that were taken back.
//! * `server_trust` is for connections of our own to the control plane.
//! * `Channel` seals and opens records afterwards: our own record layer, or stock rustls as the reference.
//!
//! Nothing here does I/O; all of it runs on the worker that owns the connection, except `CertifiedIdentity`,
//! which the control thread makes and every worker shares. Only the validity of certificates looks at the
//! clock. Specification: RFC 8446, and the mesh's rules in section 3 of the control-plane contract.

pub mod channel;
pub mod csr;
pub mod description;
pub mod error;
pub mod fake_ca;
pub mod handshake;
pub mod keys;
pub mod output;
pub mod record;
pub mod revocation;
pub mod server_trust;
pub mod verify;

pub use channel::{Channel, Opened};
pub use description::Description;
pub use error::{CredentialError, HandshakeError, RecordError, TlsError};
pub use fake_ca::FakeCa;
pub use handshake::{Established, Handshake, Progress, RecordMode, Rules};
pub use keys::CertifiedIdentity;
pub use output::Output;
pub use revocation::{Revocable, RevocationError, RevocationLists, Revoked};
pub use verify::PeerIdentity;
