//! A response while it arrives: its resources are made as they come, and wait until it is complete.
//!
//! Control thread. A response counts as a whole: one that turns out malformed at its end, or is cut off, must leave
//! nothing behind. So resources are decoded on arrival, while the rest is on its way and before their bytes have left
//! the cache, but `State::apply` puts them into the mesh only when the last one is there. What a resource is made into
//! depends on the type of the response, which comes after the resources; until then each is taken for what it says
//! itself, and one that says nothing stays bytes. Why so: docs/decisions/0015.
//!
//! Invariant: a response that is dropped changes nothing that anybody sees.

use std::sync::Arc;

use bytes::Bytes;

use super::decode::{self, Address, DecodeError};
use super::envelope::{Envelope, Malformed, Scan};
use super::fields::{Fields, FieldsError};
use super::protocol::Kind;
use super::version::Version;
use crate::limits;
use crate::mesh::{Interner, Policy, Service, Workload};

// Numbers of the fields, in proto/discovery.proto.
const VERSION: u32 = 1;
const PAYLOAD: u32 = 2;
const NAME: u32 = 3;
const ALIASES: u32 = 4;
const PAYLOAD_TYPE: u32 = 1;
const PAYLOAD_VALUE: u32 = 2;

/// A response that is complete.
#[derive(Debug, Default)]
pub struct Response {
    pub envelope: Envelope,
    /// In slices of `XDS_SLICE`: to move a hundred thousand would take a worker's patience.
    slices: Vec<Vec<Resource>>,
    /// How many resources it has.
    pub resources: usize,
    /// Of all resources together, without their envelopes.
    pub payload_bytes: usize,
    /// Other names of resources, by their place, if they are asked for.
    pub aliases: Vec<(usize, String)>,
}

/// One resource of it.
#[derive(Debug)]
pub struct Resource {
    pub name: Arc<str>,
    pub version: Version,
    pub content: Content,
}

/// What became of its payload.
#[derive(Debug)]
pub enum Content {
    Workload(Arc<Workload>),
    Service(Box<Service>),
    Policy(Box<Policy>),
    Refused(Box<DecodeError>),
    /// Of which type, only the response knows.
    Undecoded(Box<Bytes>),
}

/// A response that is not complete yet.
#[derive(Debug)]
pub struct Arriving {
    scan: Scan,
    response: Response,
    tells_aliases: bool,
}

/// A resource as it came.
#[derive(Debug, Default)]
struct Parts<'a> {
    name: &'a str,
    version: &'a str,
    type_url: &'a str,
    payload: Option<&'a [u8]>,
    aliases: Vec<&'a str>,
}

impl Arriving {
    /// Of so many bytes.
    pub fn new(message_bytes: usize, tells_aliases: bool) -> Self {
        Self {
            scan: Scan::new(message_bytes),
            response: Response::default(),
            tells_aliases,
        }
    }

    /// The next bytes, after `step` made everything of those before.
    pub fn feed(&mut self, bytes: Bytes) {
        self.scan.feed(bytes);
    }

    /// Makes at most so many resources of what has come; how many it were.
    pub fn step(&mut self, resources_max: usize, interner: &mut Interner) -> Result<usize, Malformed> {
        for made in 0..resources_max {
            let Some(bytes) = self.scan.next_resource()? else {
                return Ok(made);
            };
            self.response.add(&bytes, self.tells_aliases, interner);
        }
        Ok(resources_max)
    }

    /// After the last byte.
    pub fn finish(self) -> Result<Response, Malformed> {
        Ok(Response {
            envelope: self.scan.finish()?,
            ..self.response
        })
    }
}

impl Response {
    /// Its resources, in their order and in slices.
    pub fn take_slices(&mut self) -> impl Iterator<Item = Vec<Resource>> + use<> {
        std::mem::take(&mut self.slices).into_iter()
    }

    fn add(&mut self, bytes: &Bytes, tells_aliases: bool, interner: &mut Interner) {
        let mut parts = Parts::default();
        let read = parts.read(bytes);
        self.payload_bytes += parts.payload.map_or(0, <[u8]>::len);
        let content = match (read, parts.payload) {
            (Err(error), _) => Content::refused(error.into()),
            (Ok(()), None) => Content::refused(DecodeError::NoPayload),
            (Ok(()), Some(payload)) => match Kind::of(parts.type_url) {
                Some(kind) => Content::decode(kind, parts.name, payload, interner),
                None => Content::Undecoded(Box::new(bytes.slice_ref(payload))),
            },
        };
        let name = match &content {
            Content::Workload(workload) if *workload.uid == *parts.name => workload.uid.clone(),
            Content::Policy(policy) => policy.key.clone(),
            // It has to be called something where it is refused.
            Content::Refused(_) if parts.name.is_empty() => {
                format!("resource {} of the response", self.resources).into()
            }
            _ => parts.name.into(),
        };
        if tells_aliases {
            let place = self.resources;
            let names = parts.aliases.iter().map(|name| (*name).to_owned());
            self.aliases.extend(names.map(|name| (place, name)));
        }
        if self.resources.is_multiple_of(limits::XDS_SLICE) {
            self.slices.push(Vec::with_capacity(limits::XDS_SLICE));
        }
        self.resources += 1;
        let slice = self.slices.last_mut().expect("invariant: one was begun");
        slice.push(Resource {
            name,
            version: parts.version.into(),
            content,
        });
    }
}

impl Resource {
    /// As a resource of a response about `kind`.
    pub fn of_kind(self, kind: Kind, interner: &mut Interner) -> Self {
        let content = match (self.content, kind) {
            (Content::Undecoded(payload), kind) => Content::decode(kind, &self.name, &payload, interner),
            (Content::Workload(_) | Content::Service(_), Kind::Authorization)
            | (Content::Policy(_), Kind::Address) => Content::refused(DecodeError::OtherType(kind)),
            (content, _) => content,
        };
        Self { content, ..self }
    }
}

impl Content {
    fn decode(kind: Kind, name: &str, payload: &[u8], interner: &mut Interner) -> Self {
        let content = match kind {
            Kind::Address => decode::address(payload, interner).map(|address| match address {
                Address::Workload(workload) => Self::Workload(workload),
                Address::Service(service) => Self::Service(service),
            }),
            Kind::Authorization => decode::policy(name, payload).map(|policy| Self::Policy(Box::new(policy))),
        };
        content.unwrap_or_else(Self::refused)
    }

    fn refused(error: DecodeError) -> Self {
        Self::Refused(Box::new(error))
    }
}

impl<'a> Parts<'a> {
    /// Goes on to the end even if something is wrong: a resource is refused by its name.
    fn read(&mut self, bytes: &'a [u8]) -> Result<(), FieldsError> {
        let mut outcome = Ok(());
        for field in Fields::of(bytes) {
            let read = field.and_then(|(number, value)| {
                match number {
                    VERSION => self.version = value.text("version")?,
                    NAME => self.name = value.text("name")?,
                    ALIASES => self.aliases.push(value.text("aliases")?),
                    PAYLOAD => {
                        let payload = self.payload.get_or_insert_default();
                        for field in Fields::of(value.bytes("resource")?) {
                            match field? {
                                (PAYLOAD_TYPE, value) => self.type_url = value.text("resource.type_url")?,
                                (PAYLOAD_VALUE, value) => *payload = value.bytes("resource.value")?,
                                (_, _) => {}
                            }
                        }
                    }
                    _ => {}
                }
                Ok(())
            });
            outcome = outcome.and(read);
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
