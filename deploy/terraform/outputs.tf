output "url" {
  description = "Where clients call; point your domain's name here."
  value       = "https://${aws_lb.api.dns_name}"
}

output "nats_nodes" {
  description = "Addresses of the NATS nodes, which the certificates must name."
  value       = local.nodes
}
