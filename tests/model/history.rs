//! What a history may do, and how it is done to real [`Keyrings`].

use std::sync::Arc;
use std::time::Duration;

use keyward::domain::{Algorithm, Caller, KeyState, Kid, RotationPolicy, TenantId, TokenName, Trigger, after};
use keyward::keyring::snapshot::TenantView;
use keyward::keyring::{Clock, Error, Keyrings, RotateKeys, Settings, TenantSpec, TenantUpdate, Tokens};
use proptest::prelude::*;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use super::rules::{self, Jwt};
use super::world::{Call, Clocks, Outcome, Outside, Shared, World, lock, timestamp};

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create(usize),
    Tend(usize),
    /// A request of this name; the same name again is the same request.
    Rotate {
        replica: usize,
        request: u8,
        force: bool,
        revoke_replaced: bool,
        expected: bool,
    },
    Revoke {
        replica: usize,
        key: u8,
    },
    Policy {
        replica: usize,
        policy: usize,
    },
    /// HS256 is added to the tenant's algorithms, or retired.
    Algorithms {
        replica: usize,
        hs256: bool,
    },
    Delete(usize),
    /// One waiting call has this outcome.
    Step {
        call: u8,
        outcome: Outcome,
    },
    /// So many calls of a replica are done.
    Run {
        replica: usize,
        calls: u8,
    },
    Crash {
        replica: usize,
        happens: bool,
    },
    Sign {
        replica: usize,
        refresh: bool,
    },
    Pass(i64),
    Jump {
        replica: usize,
        seconds: i64,
    },
    TurnUp,
}

/// Where a history begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The tenant is being created.
    Creating,
    /// It has its keys of one algorithm.
    One,
    /// It has those of two.
    Two,
}

impl Start {
    pub(crate) const ALL: [Self; 5] = [Self::Creating, Self::One, Self::One, Self::Two, Self::Two];
}

impl Op {
    pub(crate) fn any(replicas: usize) -> impl Strategy<Value = Self> {
        let replica = 0..replicas;
        let outcome = prop_oneof![
            6 => Just(Outcome::Done), 2 => Just(Outcome::Failed), 2 => Just(Outcome::FailedButHappened),
            1 => Just(Outcome::Half), 1 => Just(Outcome::Late), 1 => Just(Outcome::NotAsked),
        ];
        let jump =
            prop_oneof![Just(-4000), Just(-130), Just(-20), Just(20), Just(130), Just(500), Just(5000), Just(90_000)];
        let pass = prop_oneof![Just(1), Just(5), Just(12), Just(40), Just(71), Just(125), Just(410), Just(4000)];
        let rotate = (replica.clone(), 0..6_u8, prop::bool::weighted(0.3), prop::bool::weighted(0.2), any::<bool>());
        prop_oneof![
            1 => replica.clone().prop_map(Op::Create),
            12 => replica.clone().prop_map(Op::Tend),
            8 => rotate.prop_map(|(replica, request, force, revoke_replaced, expected)| Op::Rotate {
                replica, request, force, revoke_replaced, expected
            }),
            3 => (replica.clone(), any::<u8>()).prop_map(|(replica, key)| Op::Revoke { replica, key }),
            6 => (replica.clone(), any::<bool>()).prop_map(|(replica, hs256)| Op::Algorithms { replica, hs256 }),
            4 => (replica.clone(), 0..POLICIES).prop_map(|(replica, policy)| Op::Policy { replica, policy }),
            1 => prop_oneof![3 => Just(None), 1 => replica.clone().prop_map(Some)]
                .prop_map(|replica| replica.map_or(Op::Pass(1), Op::Delete)),
            24 => (any::<u8>(), outcome).prop_map(|(call, outcome)| Op::Step { call, outcome }),
            16 => (replica.clone(), 1..16_u8).prop_map(|(replica, calls)| Op::Run { replica, calls }),
            5 => (replica.clone(), any::<bool>()).prop_map(|(replica, happens)| Op::Crash { replica, happens }),
            14 => (replica.clone(), prop::bool::weighted(0.7)).prop_map(|(replica, refresh)| Op::Sign { replica, refresh }),
            12 => pass.prop_map(Op::Pass),
            6 => (replica, jump).prop_map(|(replica, seconds)| Op::Jump { replica, seconds }),
            2 => Just(Op::TurnUp),
        ]
    }
}

const POLICIES: usize = 5;

/// Policies that differ in everything; the skew is that between the replicas at most.
fn policy(number: usize) -> RotationPolicy {
    let (ttl, age, lead, period, delay, auto_revoke) = [
        (300, 60, 70, 0, 600, true),
        (3600, 300, 400, 0, 600, true),
        (60, 30, 40, 500, 0, true),
        (900, 30, 120, 130, 200, true),
        (120, 60, 70, 0, 100, false),
    ][number];
    let policy = RotationPolicy {
        max_token_ttl: Duration::from_secs(ttl),
        jwks_max_age: Duration::from_secs(age),
        clock_skew: Duration::from_secs(10),
        publish_lead: Duration::from_secs(lead),
        rotation_period: Duration::from_secs(period),
        destroy_delay: Duration::from_secs(delay),
        auto_revoke,
    };
    policy.check().expect("the policies of the model are valid");
    policy
}

/// How long after the store confirmed it a replica signs from its snapshot (R10), in seconds.
const SNAPSHOT_MAX_AGE: i64 = 14;

/// More calls than any plan makes from any state: beyond it nothing comes to rest.
const CALLS_MAX: usize = 400;

/// Wakes after the history: enough for the longest chain (lease, sweep, second sweep, retirement, destruction).
const WAKES: usize = 8;

/// One process.
struct Life {
    number: usize,
    keyrings: Arc<Keyrings>,
    clock: Clock,
    tasks: Vec<JoinHandle<Result<(), Error>>>,
    confirmed: Option<i64>,
    runtime: Runtime,
}

impl Life {
    /// Lets the process go on until all of it waits for the history: a call's task, the use case that it belongs to and
    /// the one that has the next turn wake each other.
    fn settle(&self) {
        self.runtime.block_on(async {
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
        });
    }
}

struct History {
    world: Shared,
    lives: Vec<Life>,
    born: usize,
    tenant: TenantId,
    two_algorithms: bool,
}

/// Runs one history and what follows it until rest; says which rule it broke.
pub(crate) fn run(clocks: Clocks, replicas: usize, start: Start, ops: &[Op]) -> Result<(), String> {
    let mut world = World::default();
    if clocks == Clocks::Skewed {
        world.offsets = [0, 4];
    }
    let mut history = History {
        world: Arc::new(world.into()),
        lives: Vec::new(),
        born: 0,
        tenant: "t".parse().expect("it is a name"),
        two_algorithms: false,
    };
    lock(&history.world).ledger.clocks = Some(clocks);
    for replica in 0..replicas {
        let life = history.birth(replica, replicas);
        history.lives.push(life);
    }
    history.two_algorithms = start == Start::Two;
    history.apply(&Op::Create(0), clocks, replicas)?;
    if start != Start::Creating {
        history.apply(&Op::Run { replica: 0, calls: 24 }, clocks, replicas)?;
    }
    for op in ops {
        history.apply(op, clocks, replicas).map_err(|broken| format!("{broken}\nat {op:?}"))?;
    }
    history.end().map_err(|broken| format!("{broken}\nafter the history"))
}

impl History {
    fn birth(&mut self, replica: usize, replicas: usize) -> Life {
        self.born += 1;
        let outside = Arc::new(Outside { world: Arc::clone(&self.world), life: self.born });
        let world = Arc::clone(&self.world);
        let clock = Clock::new(move || {
            let world = lock(&world);
            timestamp(world.time + world.offsets[replica])
        });
        let settings = Settings {
            base_url: "https://keys.example".to_owned(),
            rsa_bits: 2048,
            verify_share: 1.0,
            sign_wait_max: Duration::from_secs(60),
            snapshot_max_age: Duration::from_secs(60),
            // The time of histories stands still while a call is made.
            others_wait_max: Duration::ZERO,
            manual_rotations_per_day: 1000,
            sole: replicas == 1,
        };
        let token: Arc<Outside> = Arc::clone(&outside);
        let keyrings = Arc::new(Keyrings::new(Tokens::new(token, []), outside, clock.clone(), settings));
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime needs nothing");
        Life { number: self.born, keyrings, clock, tasks: Vec::new(), confirmed: None, runtime }
    }

    fn apply(&mut self, op: &Op, clocks: Clocks, replicas: usize) -> Result<(), String> {
        let tenant = self.tenant.clone();
        match *op {
            Op::Create(replica) => {
                let gone = lock(&self.world).removed;
                let spec = TenantSpec {
                    id: tenant,
                    issuer: None,
                    token: TokenName::default(),
                    custom_domain: None,
                    saml_sso_url: None,
                    algorithms: [Algorithm::EdDSA, Algorithm::HS256][..1 + usize::from(self.two_algorithms)].to_vec(),
                    default_algorithm: Some(Algorithm::EdDSA),
                    policy: policy(0),
                };
                if !gone {
                    self.start(replica, |keyrings| async move {
                        keyrings.create_tenant(spec, &Caller::timer()).await.map(drop)
                    });
                }
            }
            Op::Tend(replica) => self.tend(replica),
            Op::Rotate { replica, request, force, revoke_replaced, expected } => {
                // A request is for one keyring, whenever it is repeated.
                let algorithm = if request % 3 == 0 { Algorithm::HS256 } else { Algorithm::EdDSA };
                let trigger = self.trigger(algorithm, request, force, revoke_replaced, expected);
                let request = RotateKeys { tenant, algorithm: Some(algorithm), trigger };
                self.start(
                    replica,
                    |keyrings| async move { keyrings.rotate(request, &Caller::timer()).await.map(drop) },
                );
            }
            Op::Revoke { replica, key } => {
                let kids: Vec<Kid> = lock(&self.world)
                    .keyrings()
                    .iter()
                    .flat_map(|keyring| keyring.keys.iter().map(|key| key.kid.clone()))
                    .collect();
                if !kids.is_empty() {
                    let kid = kids[usize::from(key) % kids.len()].clone();
                    self.start(replica, |keyrings| async move {
                        keyrings.revoke(tenant, kid, &Caller::timer()).await.map(drop)
                    });
                }
            }
            Op::Policy { replica, policy: number } => {
                let revision = lock(&self.world).record.as_ref().map(|record| record.tenant.revision);
                if let Some(revision) = revision {
                    let update = TenantUpdate { policy: Some(policy(number)), ..TenantUpdate::default() };
                    self.start(replica, |keyrings| async move {
                        keyrings.update_tenant(tenant, revision, update, &Caller::timer()).await.map(drop)
                    });
                }
            }
            Op::Algorithms { replica, hs256 } => {
                let revision = lock(&self.world).record.as_ref().map(|record| record.tenant.revision);
                if let Some(revision) = revision {
                    let mut algorithms = vec![Algorithm::EdDSA];
                    algorithms.extend(hs256.then_some(Algorithm::HS256));
                    let update = TenantUpdate { algorithms: Some(algorithms), ..TenantUpdate::default() };
                    self.start(replica, |keyrings| async move {
                        keyrings.update_tenant(tenant, revision, update, &Caller::timer()).await.map(drop)
                    });
                }
            }
            Op::Delete(replica) => {
                self.start(replica, |keyrings| async move { keyrings.delete_tenant(tenant, &Caller::timer()).await })
            }
            Op::Step { call, outcome } => {
                let waiting = lock(&self.world).parked.len();
                if waiting > 0 {
                    self.answer(usize::from(call) % waiting, outcome);
                }
            }
            Op::Run { replica, calls } => {
                let life = self.lives[replica].number;
                for _ in 0..calls {
                    if !self.answer_first(|parked_life, _| parked_life == life) {
                        break;
                    }
                }
            }
            Op::Crash { replica, happens } => {
                let number = self.lives[replica].number;
                self.lives[replica] = self.birth(replica, replicas);
                lock(&self.world).crash(number, happens);
            }
            Op::Sign { replica, refresh } => {
                if refresh {
                    self.refresh(replica);
                }
                self.sign(replica);
            }
            Op::Pass(seconds) => {
                // A store answers or fails within seconds; true-time promises count on it.
                while clocks == Clocks::Skewed && self.answer_first(|_, call| matches!(call, Call::Commit(_))) {}
                lock(&self.world).time += seconds;
            }
            Op::Jump { replica, seconds } => {
                if clocks == Clocks::Wild {
                    lock(&self.world).offsets[replica] += seconds;
                }
            }
            Op::TurnUp => lock(&self.world).turn_up(),
        }
        self.judge()
    }

    /// Faults end, clocks are right and late enough: everything comes to rest, and stays whole as time goes on.
    fn end(&mut self) -> Result<(), String> {
        self.come_to_rest()?;
        {
            let mut world = lock(&self.world);
            while !world.late.is_empty() {
                world.turn_up();
            }
            // Ahead of every clock that there was.
            world.time += 200_000;
            let ahead = world.offsets.iter().copied().max().unwrap_or(0).max(0);
            world.time += ahead + 90_000 * 60;
            world.offsets = [0, 0];
        }
        for _ in 0..WAKES {
            for replica in 0..self.lives.len() {
                self.tend(replica);
                self.come_to_rest()?;
            }
            let mut world = lock(&self.world);
            let wake = rules::at_rest(&mut world);
            let Some(wake) = wake else { break };
            world.time += (wake.as_second() - timestamp(world.time).as_second()).max(1);
        }
        let mut world = lock(&self.world);
        rules::at_last(&mut world);
        world.broken.take().map_or(Ok(()), Err)
    }

    /// Every call that waits is done, and what comes of it, until nothing waits.
    fn come_to_rest(&mut self) -> Result<(), String> {
        for _ in 0..=CALLS_MAX {
            if !self.answer_first(|_, _| true) {
                return self.judge();
            }
        }
        Err("idle: it never rests".to_owned())
    }

    fn trigger(
        &self,
        algorithm: Algorithm,
        request: u8,
        force: bool,
        revoke_replaced: bool,
        expected: bool,
    ) -> Trigger {
        let mut world = lock(&self.world);
        let id: keyward::domain::RequestId = format!("r{request}").parse().expect("it is a name");
        let current = world.keyring(algorithm).and_then(|keyring| keyring.current()).map(|key| key.kid.clone());
        let trigger = Trigger {
            manual: true,
            force,
            revoke_replaced,
            expected_current: current.filter(|_| expected),
            request_id: Some(id.clone()),
            of_default: false,
        };
        world.triggers.entry(id).or_insert(trigger).clone()
    }

    fn tend(&mut self, replica: usize) {
        let tenant = self.tenant.clone();
        self.start(replica, |keyrings| async move { keyrings.tend_tenant(&tenant).await });
    }

    fn start<F>(&mut self, replica: usize, work: impl FnOnce(Arc<Keyrings>) -> F)
    where
        F: Future<Output = Result<(), Error>> + Send + 'static,
    {
        let life = &mut self.lives[replica];
        let task = life.runtime.spawn(work(Arc::clone(&life.keyrings)));
        life.tasks.push(task);
        life.settle();
    }

    fn refresh(&mut self, replica: usize) {
        let asked = lock(&self.world).time;
        let number = self.lives[replica].number;
        let keyrings = Arc::clone(&self.lives[replica].keyrings);
        let task = self.lives[replica].runtime.spawn(async move { keyrings.refresh().await });
        self.lives[replica].settle();
        while !task.is_finished() {
            let read = |life, call: &Call| life == number && matches!(call, Call::Load | Call::Revisions);
            if !self.answer_first(read) {
                return;
            }
        }
        let life = &mut self.lives[replica];
        if life.runtime.block_on(task).is_ok_and(|result| result.is_ok()) {
            life.confirmed = Some(asked);
        }
    }

    fn sign(&mut self, replica: usize) {
        let life = &self.lives[replica];
        let fresh = life.confirmed.is_some_and(|confirmed| lock(&self.world).time - confirmed <= SNAPSHOT_MAX_AGE);
        let snapshot = life.keyrings.snapshot();
        let Some(view) = snapshot.tenant(&self.tenant).filter(|_| fresh) else { return };
        for algorithm in [Algorithm::EdDSA, Algorithm::HS256] {
            self.sign_with(life, view, algorithm);
        }
    }

    fn sign_with(&self, life: &Life, view: &TenantView, algorithm: Algorithm) {
        let Some(signer) = view.signer(algorithm) else { return };
        let sign_time = life.clock.now();
        let mut world = lock(&self.world);
        let jwt = Jwt {
            kid: signer.kid.clone(),
            life: life.number,
            born: world.tick(),
            sign_time,
            expiry: after(sign_time, view.record.tenant.policy.max_token_ttl),
            policy: view.record.tenant.revision,
        };
        let own = view.record.keyrings.iter().filter(|keyring| keyring.algorithm == algorithm);
        let current = own.flat_map(|keyring| keyring.in_state(KeyState::Current)).count();
        if current != 1 {
            world.broke(format!("R2: a snapshot with {current} current keys"));
        }
        rules::signed(&mut world, jwt);
    }

    fn answer_first(&mut self, wanted: impl Fn(usize, &Call) -> bool) -> bool {
        let index = lock(&self.world).parked.iter().position(|parked| wanted(parked.life, &parked.call));
        index.inspect(|index| self.answer(*index, Outcome::Done)).is_some()
    }

    fn answer(&self, index: usize, outcome: Outcome) {
        let asker = lock(&self.world).answer(index, outcome);
        self.lives.iter().filter(|life| life.number == asker).for_each(Life::settle);
    }

    /// The rules, and what the use cases answered.
    fn judge(&mut self) -> Result<(), String> {
        for life in &mut self.lives {
            let done = life.tasks.extract_if(.., |task| task.is_finished()).collect::<Vec<_>>();
            for task in done {
                match life.runtime.block_on(task) {
                    Ok(Err(Error::Internal(cause))) => return Err(format!("a bug: {cause}")),
                    Ok(_) => {}
                    Err(panic) => return Err(format!("panic: {panic}")),
                }
            }
        }
        lock(&self.world).broken.take().map_or(Ok(()), Err)
    }
}
