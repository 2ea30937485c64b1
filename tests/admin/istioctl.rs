//! The tables that `istioctl ztunnel-config` prints, made from a dump. Re-derived from what it printed for the
//! captured dumps (tests/data/istioctl-*.txt); `the_tables_of_the_captured_dumps_come_out_as_istioctl_prints_them`
//! holds it to that. Where the program is to be had, it is run as well.

use std::ffi::OsStr;
use std::process::Command;

use serde_json::Value;

/// One command's output.
pub fn table(command: &str, dump: &Value, now: &str) -> String {
    let (padding, rows) = match command {
        "workloads" => (1, workloads(dump)),
        "services" => (1, services(dump)),
        "policies" => (1, policies(dump)),
        "certificates" => (5, certificates(dump, now)),
        "connections" => (1, connections(dump)),
        other => panic!("no such command: {other}"),
    };
    aligned(&rows, padding)
}

/// The program prints this.
pub fn assert_prints(program: &OsStr, command: &str, dump: &Value, table: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), dump.to_string()).expect("written");
    let mut istioctl = Command::new(program);
    istioctl.args(["ztunnel-config", command, "-f"]).arg(file.path());
    let output = istioctl.output().expect("istioctl runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let printed = String::from_utf8(output.stdout).expect("text");
    assert_eq!(printed.trim_end(), table.trim_end(), "{command}");
}

/// Columns as wide as their widest cell and `padding`, but for the last.
fn aligned(rows: &[Vec<String>], padding: usize) -> String {
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0) + padding;
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            if column + 1 == columns {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:<width$}", width = widths[column]));
            }
        }
        text.push('\n');
    }
    text
}

fn head(names: &[&str]) -> Vec<Vec<String>> {
    vec![names.iter().map(|name| (*name).to_owned()).collect()]
}

fn string(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn sorted<'a>(dump: &'a Value, key: &str) -> Vec<&'a Value> {
    let mut items: Vec<&Value> = list(dump, key).iter().collect();
    items.sort_by_key(|item| (string(item, "namespace"), string(item, "name")));
    items
}

fn workloads(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = head(&["NAMESPACE", "POD NAME", "ADDRESS", "NODE", "WAYPOINT", "PROTOCOL"]);
    for workload in sorted(dump, "workloads") {
        let ips: Vec<&str> = list(workload, "workloadIps")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let address = if ips.is_empty() {
            string(workload, "hostname")
        } else {
            ips.join(",")
        };
        rows.push(vec![
            string(workload, "namespace"),
            string(workload, "name"),
            address,
            string(workload, "node"),
            waypoint(workload, dump),
            string(workload, "protocol"),
        ]);
    }
    rows
}

/// The name of the service that it refers to.
fn waypoint(item: &Value, dump: &Value) -> String {
    let Some(destination) = item["waypoint"]["destination"].as_str() else {
        return "None".to_owned();
    };
    let is_meant = |service: &&Value| {
        let key = format!("{}/{}", string(service, "namespace"), string(service, "hostname"));
        key == destination || list(service, "vips").iter().any(|vip| vip == destination)
    };
    list(dump, "services")
        .iter()
        .find(is_meant)
        .map_or("NA".to_owned(), |service| string(service, "name"))
}

fn services(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = head(&[
        "NAMESPACE",
        "SERVICE NAME",
        "SERVICE VIP",
        "WAYPOINT",
        "ENDPOINTS",
    ]);
    let is_healthy = |uid: &String| {
        list(dump, "workloads")
            .iter()
            .any(|workload| workload["uid"] == **uid && workload["status"] == "Healthy")
    };
    for service in sorted(dump, "services") {
        let vips: Vec<&str> = list(service, "vips")
            .iter()
            .filter_map(|vip| vip.as_str()?.split('/').nth(1))
            .collect();
        let endpoints = service["endpoints"].as_object().expect("endpoints");
        let healthy = endpoints.keys().filter(|uid| is_healthy(uid)).count();
        rows.push(vec![
            string(service, "namespace"),
            string(service, "name"),
            vips.join(","),
            waypoint(service, dump),
            format!("{healthy}/{}", endpoints.len()),
        ]);
    }
    rows
}

fn policies(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = head(&["NAMESPACE", "POLICY NAME", "ACTION", "SCOPE"]);
    let keys = ["namespace", "name", "action", "scope"];
    rows.extend(
        sorted(dump, "policies")
            .iter()
            .map(|policy| keys.map(|key| string(policy, key)).into()),
    );
    rows
}

fn certificates(dump: &Value, now: &str) -> Vec<Vec<String>> {
    let mut rows = head(&[
        "CERTIFICATE NAME",
        "TYPE",
        "STATUS",
        "VALID CERT",
        "SERIAL NUMBER",
        "NOT AFTER",
        "NOT BEFORE",
    ]);
    for item in list(dump, "certificates") {
        let (identity, mut state) = (string(item, "identity"), string(item, "state"));
        if state.contains("Unavailable") {
            state = "Unavailable".to_owned();
        }
        let chain = list(item, "certChain").iter().enumerate();
        let chain = chain.map(|(at, it)| (if at == 0 { "Leaf" } else { "Intermediate" }, it));
        let roots = list(item, "rootCerts").iter().map(|it| ("Root", it));
        let certificates: Vec<_> = chain.chain(roots).collect();
        if certificates.is_empty() {
            let row = [&identity, "NA", &state, "false", "NA", "NA", "NA"];
            rows.push(row.map(str::to_owned).into());
            continue;
        }
        for (kind, certificate) in certificates {
            let (from, until) = (
                string(certificate, "validFrom"),
                string(certificate, "expirationTime"),
            );
            // Texts of one shape sort as times do.
            let is_valid = from.as_str() <= now && now < until.as_str();
            rows.push(vec![
                identity.clone(),
                kind.to_owned(),
                state.clone(),
                is_valid.to_string(),
                hexadecimal(&string(certificate, "serialNumber")),
                until,
                from,
            ]);
        }
    }
    rows
}

/// Of a decimal number of any length.
pub fn hexadecimal(decimal: &str) -> String {
    let mut digits: Vec<u32> = decimal
        .chars()
        .map(|it| it.to_digit(10).expect("a digit"))
        .collect();
    let mut text = Vec::new();
    while digits.iter().any(|digit| *digit > 0) {
        let mut rest = 0;
        for digit in &mut digits {
            let value = rest * 10 + *digit;
            (*digit, rest) = (value / 16, value % 16);
        }
        text.push(char::from_digit(rest, 16).expect("below 16"));
    }
    text.iter().rev().collect()
}

fn connections(dump: &Value) -> Vec<Vec<String>> {
    let mut rows = head(&[
        "WORKLOAD",
        "DIRECTION",
        "LOCAL",
        "REMOTE",
        "REMOTE TARGET",
        "PROTOCOL",
    ]);
    for pod in dump["workloadState"].as_object().expect("pods").values() {
        let info = &pod["info"];
        let workload = format!("{}.{}", string(info, "name"), string(info, "namespace"));
        for (direction, key) in [("Inbound", "inbound"), ("Outbound", "outbound")] {
            for connection in list(&pod["connections"], key) {
                let address = |key| named(&string(connection, key), dump);
                let target = string(connection, "originalDst");
                let ends = match key {
                    "inbound" => [address("actualDst"), address("src"), target],
                    _ => [address("src"), address("actualDst"), named(&target, dump)],
                };
                let mut row = vec![workload.clone(), direction.to_owned()];
                row.extend(ends);
                row.push(string(connection, "protocol"));
                rows.push(row);
            }
        }
    }
    rows
}

/// An address by the name of the service or workload that has it first.
fn named(address: &str, dump: &Value) -> String {
    let (ip, port) = address.rsplit_once(':').expect("a port");
    let of_service = list(dump, "services").iter().find(|service| {
        let first = list(service, "vips").first().and_then(Value::as_str);
        first.and_then(|vip| vip.split('/').nth(1)) == Some(ip)
    });
    let of_workload = || {
        list(dump, "workloads")
            .iter()
            .find(|workload| list(workload, "workloadIps").first().and_then(Value::as_str) == Some(ip))
    };
    match of_service.or_else(of_workload) {
        Some(item) => format!("{}.{}:{port}", string(item, "name"), string(item, "namespace")),
        None => address.to_owned(),
    }
}
