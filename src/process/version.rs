//! What this program is: the banner of `version` and of the start, and the same in the admin dump.

use serde_json::{Value, json};

/// Who does the cryptography, in the words that tools know.
const CRYPTO: &str = "tls-aws-lc";

/// The line that tools parse; its shape is upstream's. `istio_version`: of the release this runs in.
pub fn banner(istio_version: &str) -> String {
    format!(
        "version.BuildInfo{{Version:{:?}, GitRevision:{:?}, RustVersion:{:?}, BuildProfile:{:?}, \
         BuildStatus:{:?}, IstioVersion:{istio_version:?}, CryptoProvider:{CRYPTO:?}}}",
        env!("CARGO_PKG_VERSION"),
        env!("UZTUNNEL_REVISION"),
        env!("UZTUNNEL_RUSTC"),
        env!("UZTUNNEL_PROFILE"),
        env!("UZTUNNEL_BUILD_STATUS"),
    )
}

/// The same facts for the dump.
pub fn description(istio_version: &str) -> Value {
    json!({
        "buildProfile": env!("UZTUNNEL_PROFILE"),
        "buildStatus": env!("UZTUNNEL_BUILD_STATUS"),
        "cryptoProvider": CRYPTO,
        "gitRevision": env!("UZTUNNEL_REVISION"),
        "istioVersion": istio_version,
        "rustVersion": rust_version(env!("UZTUNNEL_RUSTC")),
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The number in what `rustc --version` prints.
fn rust_version(rustc: &str) -> &str {
    rustc.split(' ').nth(1).unwrap_or(rustc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_has_upstreams_shape() {
        let banner = banner("1.31.0");
        let inside = banner
            .strip_prefix("version.BuildInfo{")
            .and_then(|rest| rest.strip_suffix('}'));
        let inside = inside.expect("the frame");
        let keys: Vec<&str> = inside
            .split(", ")
            .filter_map(|part| part.split_once(":\""))
            .map(|(key, _)| key)
            .collect();
        assert_eq!(
            keys,
            [
                "Version",
                "GitRevision",
                "RustVersion",
                "BuildProfile",
                "BuildStatus",
                "IstioVersion",
                "CryptoProvider"
            ]
        );
        assert!(inside.contains("IstioVersion:\"1.31.0\""));
    }
    #[test]
    fn the_dump_tells_the_compilers_number_only() {
        assert_eq!(rust_version("rustc 1.95.0 (59807616e 2026-04-14)"), "1.95.0");
        assert_eq!(rust_version("unknown"), "unknown");
    }
}
