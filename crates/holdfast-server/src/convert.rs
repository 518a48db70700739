//! Domain types to wire types, by hand.

use holdfast_api as api;
use holdfast_control::{Limits, Live};
use holdfast_core::{Event, Session, Vm, provider::Provider};
use holdfast_host::driver::Usage;

pub(crate) fn session(session: &Session, owner: String, limits: Option<Limits>) -> api::Session {
    api::Session {
        id: session.id.as_uuid(),
        state: session.state.as_str().to_owned(),
        detail: session.detail.clone(),
        end_reason: session.end_reason.map(|reason| reason.as_str().to_owned()),
        name: session.spec.name.clone(),
        provider: session.spec.provider.clone(),
        owner,
        screen: api::Screen {
            width: session.spec.screen.width,
            height: session.spec.screen.height,
        },
        memory_mib: session.spec.memory_mib,
        vcpus: session.spec.vcpus,
        vm_id: session.vm.map(|vm| vm.as_uuid()),
        created_at: session.created_at,
        state_since: session.state_since,
        ready_at: session.ready_at,
        ended_at: session.ended_at,
        expires_at: session.lease_expires_at,
        last_heartbeat: session.last_heartbeat_at,
        idle_at: limits.and_then(|limits| limits.idle_at),
        ends_at: limits.map(|limits| limits.ends_at),
        kept_until: limits.map(|limits| limits.kept_until),
        url: format!("/?session={}", session.id),
    }
}

pub(crate) fn session_vm(live: &Live, usage: Option<Usage>) -> api::SessionVm {
    api::SessionVm {
        vm_id: live.vm.id.as_uuid(),
        vm_ip: live.vm.address,
        state: live.vm.state.as_str().to_owned(),
        created: live.vm.created_at,
        last_heartbeat: live.session.last_heartbeat_at,
        memory_mib: usage.map(|u| u.memory_pss_kib / 1024),
        cpu_ms: usage.map(|u| u.cpu_ms),
        disk_mib: usage.map(|u| u.disk_bytes >> 20),
    }
}

pub(crate) fn vm(vm: &Vm, usage: Option<Usage>) -> api::Vm {
    api::Vm {
        id: vm.id.as_uuid(),
        session_id: vm.session.map(|session| session.as_uuid()),
        host_id: vm.host.as_uuid(),
        state: vm.state.as_str().to_owned(),
        driver: vm.driver.clone(),
        image: vm.image.clone(),
        vm_ip: vm.address,
        incarnation: vm.incarnation,
        created_at: vm.created_at,
        memory_mib: usage.map(|u| u.memory_pss_kib / 1024),
        cpu_ms: usage.map(|u| u.cpu_ms),
        disk_mib: usage.map(|u| u.disk_bytes >> 20),
    }
}

pub(crate) fn provider(provider: &Provider) -> api::Provider {
    let tool = provider.tool.as_ref();
    api::Provider {
        name: provider.name.clone(),
        title: provider.title.clone(),
        description: provider.description.clone(),
        icon: provider.icon.clone(),
        flow: tool.map(|tool| tool.flow.as_str().to_owned()),
        credentials: tool.is_some_and(|tool| !tool.credentials.is_empty()),
        hosts: tool.map(|tool| tool.hosts.clone()).unwrap_or_default(),
    }
}

pub(crate) fn event(event: &Event) -> api::Event {
    api::Event {
        seq: event.seq,
        at: event.body.at,
        kind: event.body.kind.clone(),
        from: event.body.from.clone(),
        to: event.body.to.clone(),
        why: event.body.why.clone(),
        by: event.body.by.as_str().to_owned(),
        vm_id: event.body.vm.map(|vm| vm.as_uuid()),
    }
}
