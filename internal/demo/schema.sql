-- The example schema of the demo and of docker-compose.yml: what a club or shop may have.

create table users (
    id            bigint generated always as identity primary key,
    email         text not null unique,
    first_name    text not null,
    last_name     text not null,
    cpf           text not null,                        -- formatted: 123.456.789-09
    status        text not null default 'active',
    email_opt_in  boolean not null default false,
    phone_opt_in  boolean not null default false,
    password_hash text not null,                        -- never leaves the database
    created_at    timestamptz not null default now(),
    updated_at    timestamptz not null default now()
);

create table orders (
    id         bigint generated always as identity primary key,
    user_id    bigint not null references users,
    product    text not null,
    quantity   integer not null,
    amount     numeric(12, 2) not null,
    tags       text[] not null default '{}',
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now()
);

create table fans (
    id         bigint generated always as identity primary key,
    name       text not null,
    cpf        text not null unique,
    email      text not null unique,
    birth_date date not null
);

create table memberships (
    id          bigint generated always as identity primary key,
    fan_id      bigint not null references fans,
    contract    text not null unique,
    status      text not null,
    plan        text not null,
    client_code text not null,                          -- the fan's CPF, digits only
    started_at  timestamptz not null default now()
);

create table tier_approvals (
    fan_id   uuid not null,
    tier_id  uuid not null,
    approved boolean not null,
    primary key (fan_id, tier_id)
);

-- StopChurn wants the whole row of a delete too, which Postgres then has to log.
alter table users replica identity full;
alter table orders replica identity full;
