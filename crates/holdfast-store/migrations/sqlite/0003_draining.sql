-- Since when a host takes no new sessions; NULL while it takes them.

ALTER TABLE hosts ADD COLUMN draining_since BIGINT;
