create table products (
    id bigint primary key generated always as identity,
    category_id int not null,
    brand text not null,
    price numeric(10, 2) not null,
    attrs jsonb not null default '{}'
);

create table prices (
    product_id bigint not null references products on delete cascade,
    currency text not null,
    kind text,
    amount numeric(10, 2) not null,
    primary key (product_id, currency)
);

create table product_tags (
    product_id bigint not null references products on delete cascade,
    tag text not null,
    primary key (product_id, tag)
);

create table pages (
    id bigint primary key generated always as identity,
    slug text,
    body text not null
);

insert into products (category_id, brand, price, attrs)
select number % 10, (array['Acme', 'Bolt', 'Cirrus'])[1 + number % 3], number, jsonb_build_object('sku', 'sku-' || number)
from generate_series(1, 200) as number;

insert into prices (product_id, currency, amount) select id, 'EUR', price from products;
insert into product_tags select id, (array['new', 'sale'])[1 + id % 2] from products;
insert into pages (slug, body) select 'page-' || number, 'text' from generate_series(1, 5) as number;
