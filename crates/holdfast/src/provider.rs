//! `holdfast provider ...`

use std::path::Path;

use anyhow::Context as _;
use holdfast_core::provider;

use crate::{
    cli::{Global, ProviderCommand},
    connect, output,
};

pub async fn run(global: &Global, command: ProviderCommand) -> anyhow::Result<()> {
    match command {
        ProviderCommand::Ls => ls(global).await,
        ProviderCommand::Check { files } => {
            let mut wrong = 0;
            for file in &files {
                match check(global, file) {
                    Ok(()) => {}
                    Err(error) => {
                        wrong += 1;
                        output::print_error(&error);
                    }
                }
            }
            anyhow::ensure!(wrong == 0, "{wrong} of {} files cannot be used", files.len());
            Ok(())
        }
    }
}

async fn ls(global: &Global) -> anyhow::Result<()> {
    let list = connect::client(global)?.providers().await?;
    if global.json {
        return output::json(&list);
    }
    let mut table = output::table(&["NAME", "TITLE", "FLOW", "CREDENTIALS", "DESCRIPTION"]);
    for provider in list.providers {
        let credentials = if provider.credentials { "yes" } else { "" };
        table.add_row([
            provider.name,
            provider.title,
            provider.flow.unwrap_or_default(),
            credentials.to_owned(),
            provider.description,
        ]);
    }
    output::print_table(&table, "There are no providers.");
    Ok(())
}

fn check(global: &Global, file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    // As compilers write it, so that editors find the place.
    let found = provider::parse(&text).map_err(|error| {
        anyhow::anyhow!("{}:{}:{}: {}", file.display(), error.line, error.column, error.why)
    })?;
    let flow = found.tool.as_ref().map_or("desktop", |tool| tool.flow.as_str());
    if global.json {
        return output::json(&serde_json::json!({
            "file": file, "name": found.name, "title": found.title, "flow": flow,
        }));
    }
    println!("{}: {} ({}), {flow}", file.display(), found.name, found.title);
    Ok(())
}
