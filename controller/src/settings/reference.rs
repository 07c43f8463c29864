//! The documents that are made from the tables, `etc/broker.properties` and
//! `docs/SETTINGS.md`, and the test that the checked-in files are what the tables
//! yield. `YUXI_REGENERATE=1 cargo test -p yuxi-controller settings` writes them anew.

use std::{fmt::Write, fs, path::Path};

use super::{
    broker::{SECTIONS, ServerSettings},
    group,
    names::NOT_HERE,
    row::{Range, Setting, Update},
    topic::{self, Synonym},
};

#[test]
fn the_checked_in_documents_are_what_the_tables_yield() {
    check("etc/broker.properties", &example());
    check("docs/SETTINGS.md", &reference());
}

#[test]
fn the_controllers_example_is_accepted_with_and_without_its_comments_and_shows_the_defaults() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../etc/controller.properties");
    let text = fs::read_to_string(&file).expect("etc/controller.properties");
    ServerSettings::from_properties(&text, &[]).expect("the example is accepted");
    let mut shown = 0;
    for line in text.lines() {
        let Some((name, value)) = line
            .strip_prefix('#')
            .filter(|rest| !rest.starts_with(' '))
            .and_then(|rest| rest.split_once('='))
        else {
            continue;
        };
        let mut rows = SECTIONS.iter().flat_map(|section| section.settings);
        let row = rows.find(|row| row.name == name).expect(name);
        assert_eq!(value, row.default.unwrap_or_default(), "{name}");
        shown += 1;
    }
    assert!(shown > 10, "it shows only {shown} defaults");
}

fn check(path: &str, expected: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    if std::env::var_os("YUXI_REGENERATE").is_some() {
        fs::write(&file, expected).expect(path);
    }
    let found = fs::read_to_string(&file).expect(path);
    assert!(
        found == expected,
        "{path} is not what the tables of settings yield; \
         YUXI_REGENERATE=1 cargo test -p yuxi-controller settings writes it anew"
    );
}

/// An example in which every line that sets something is a comment and shows the default.
fn example() -> String {
    let mut text = wrapped(
        "# ",
        "The settings of yuxi-broker, by Kafka's names, each with its default. Remove the # \
         before a setting to change it. A name that is not here is refused when the broker \
         starts. Start the broker with --config FILE; --override KEY=VALUE on its command line \
         takes precedence. docs/SETTINGS.md is the reference.",
    );
    text.push_str("#\n");
    text.push_str(&wrapped(
        "# ",
        "This file is made from the table in controller/src/settings/broker.rs.",
    ));
    for section in SECTIONS {
        write!(text, "\n\n{} {} {0}\n", "#".repeat(12), section.title).expect("a String");
        for row in section.settings {
            text.push('\n');
            text.push_str(&wrapped("# ", &row.documentation().replace('`', "")));
            let accepts = match row.update {
                Update::Running => ". It can be changed while the broker runs.",
                Update::AtStart | Update::PerTopic | Update::PerGroup => ".",
            };
            text.push_str(&wrapped(
                "# ",
                &format!("Accepts {}{accepts}", row.expected()),
            ));
            writeln!(text, "#{}={}", row.name, row.default.unwrap_or_default()).expect("a String");
        }
    }
    text
}

fn reference() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         This page is made from the tables in `controller/src/settings/`; \
         `YUXI_REGENERATE=1 cargo test -p yuxi-controller settings` writes it anew.\n\n\
         The names and meanings are Kafka's. A setting is given in a `.properties` file \
         (`--config FILE`, see `etc/broker.properties`) or as `--override KEY=VALUE`, which takes \
         precedence; of a name that is given twice the last holds. Those marked *running* can be \
         changed while the broker runs, for one broker or for all, with Kafka's `kafka-configs` \
         or with `yuxi config`; what is set so takes precedence over the file. A name that is not \
         on this page is refused, with the nearest name that is.\n\n\
         # Of the broker\n",
    );
    for section in SECTIONS {
        write!(
            text,
            "\n## {}\n\n| Name | Accepts | Default | Changed | Meaning |\n|---|---|---|---|---|\n",
            section.title
        )
        .expect("a String");
        for row in section.settings {
            let changed = match row.update {
                Update::Running => "running",
                Update::AtStart | Update::PerTopic | Update::PerGroup => "at start",
            };
            let default = row.default.map_or("not set".to_owned(), code);
            cells(&mut text, row, &[&default, changed]);
        }
    }
    text.push_str(
        "\n# Of a topic\n\n\
         Given when the topic is created or changed at any time after. Where a topic does not say, \
         the broker's setting holds; of several the first that is set.\n\n\
         | Name | Accepts | The broker's setting | Meaning |\n|---|---|---|---|\n",
    );
    for row in topic::ROWS {
        let synonyms: Vec<String> = row
            .synonyms
            .iter()
            .map(|Synonym { name, .. }| code(name))
            .collect();
        cells(&mut text, &row.setting, &[&synonyms.join(", ")]);
    }
    text.push_str(
        "\n# Of a group\n\n\
         Given for one group of the consumer protocol, whether it is there or not (resource type \
         GROUP). Where nothing is given the broker's setting holds.\n\n\
         | Name | Accepts | The broker's setting | Meaning |\n|---|---|---|---|\n",
    );
    for row in group::ROWS {
        cells(&mut text, &row.setting, &[&code(row.synonym)]);
    }
    text.push_str(
        "\n# Of Kafka, but not here\n\n\
         Yuxi refuses these, because they would have no effect. A name that ends in a dot stands \
         for all that begin with it.\n\n| Name | What to do |\n|---|---|\n",
    );
    for (name, remedy) in NOT_HERE {
        writeln!(text, "| {} | {remedy} |", code(name)).expect("a String");
    }
    text
}

fn cells(text: &mut String, row: &Setting, middle: &[&str]) {
    let accepts = match row.range {
        Range::Any if !row.allowed.is_empty() => {
            let choices: Vec<String> = row.allowed.iter().map(|choice| code(choice)).collect();
            choices.join(", ")
        }
        _ => row.expected(),
    };
    writeln!(
        text,
        "| {} | {accepts} | {} | {} |",
        code(row.name),
        middle.join(" | "),
        row.documentation()
    )
    .expect("a String");
}

fn code(text: &str) -> String {
    if text.is_empty() {
        "empty".to_owned()
    } else {
        format!("`{text}`")
    }
}

/// `text` in lines of at most 88 characters, each after `prefix`.
fn wrapped(prefix: &str, text: &str) -> String {
    const WIDTH: usize = 88;
    let mut lines = String::new();
    let mut line = prefix.to_owned();
    for word in text.split_whitespace() {
        if line.len() + word.len() > WIDTH && line.len() > prefix.len() {
            lines.push_str(line.trim_end());
            lines.push('\n');
            line.truncate(prefix.len());
        }
        line.push_str(word);
        line.push(' ');
    }
    lines + line.trim_end() + "\n"
}
