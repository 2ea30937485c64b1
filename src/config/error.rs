//! Why a configuration is refused. Every text names the input, what is wrong with it and what would be right.

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("invalid env var {name}={value} ({reason})")]
    Variable {
        name: String,
        value: String,
        reason: String,
    },
    #[error("invalid env var {name} (no such variable; {hint})")]
    UnknownVariable { name: String, hint: String },
    #[error("invalid configuration: {0}")]
    Invalid(String),
    #[error("{setting} is not supported by this version yet: {instead}")]
    Unsupported { setting: String, instead: String },
    #[error("error parsing proxy config: {0}")]
    ProxyConfig(String),
    #[error("failed to parse header key: {0}")]
    HeaderKey(String),
    #[error("failed to parse header value: {0}")]
    HeaderValue(String),
}

impl ConfigError {
    pub(super) fn variable(name: &str, value: &str, reason: impl Into<String>) -> Self {
        Self::Variable {
            name: name.to_owned(),
            value: value.to_owned(),
            reason: reason.into(),
        }
    }

    pub(super) fn unsupported(setting: impl Into<String>, instead: &str) -> Self {
        Self::Unsupported {
            setting: setting.into(),
            instead: instead.to_owned(),
        }
    }
}
