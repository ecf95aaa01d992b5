output "service" {
  description = "The API inside the cluster."
  value       = "http://${var.release}-api.${var.namespace}.svc"
}
