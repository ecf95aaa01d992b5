output "node" {
  description = "User data of each NATS node, by name."
  value       = local.node
  sensitive   = true
}

output "api" {
  description = "User data of an API replica."
  value       = local.role["api"]
  sensitive   = true
}

output "worker" {
  description = "User data of a worker."
  value       = local.role["worker"]
  sensitive   = true
}
