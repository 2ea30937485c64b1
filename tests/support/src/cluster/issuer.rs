//! The issuer of a cert-manager: approves and signs what istio-csr asks for, as soon as it is asked for.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::Api;
use crate::authority::{Authority, Terms};
use crate::{Result, RigError};

/// Under the namespace of the requests.
const REQUESTS: &str = "certificaterequests";
const LIFETIME: Duration = Duration::from_secs(3600);
const INTERVAL: Duration = Duration::from_millis(20);

/// Until it is dropped.
pub(super) struct Issuer {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Issuer {
    /// Of requests in a namespace of the cluster.
    pub fn start(api: Api, namespace: &str, authority: Authority) -> Self {
        let (stop, stopped) = mpsc::channel();
        let path = format!("/apis/cert-manager.io/v1/namespaces/{namespace}/{REQUESTS}");
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = sign_all(&api, &path, &authority) {
                    eprintln!("rig: issuer: {error}");
                }
            }
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn sign_all(api: &Api, path: &str, authority: &Authority) -> Result<()> {
    let requests = api.ask("GET", path, None)?;
    let all = requests["items"].as_array().into_iter().flatten();
    for request in all.filter(|request| request["status"]["certificate"].is_null()) {
        let name = request["metadata"]["name"].as_str().unwrap_or_default();
        let signed = sign(&request["spec"]["request"], authority)
            .map_err(|cause| RigError::new(format!("signing {name}"), cause))?;
        let condition =
            |kind: &str| json!({"type": kind, "status": "True", "reason": "Rig", "message": "as ever"});
        let status = json!({"status": {
            "conditions": [condition("Approved"), condition("Ready")],
            "certificate": STANDARD.encode(signed),
            "ca": STANDARD.encode(authority.pem()),
        }});
        api.ask("PATCH", &format!("{path}/{name}/status"), Some(&status))?;
    }
    Ok(())
}

fn sign(request: &Value, authority: &Authority) -> std::result::Result<String, Box<dyn std::error::Error>> {
    let pem = STANDARD.decode(request.as_str().unwrap_or_default())?;
    Ok(authority.sign(&String::from_utf8(pem)?, &Terms::lasting(LIFETIME))?)
}
