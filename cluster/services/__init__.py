"""Real servers out of package registries alone: Kafka, a server of MongoDB's protocol, Keycloak."""
