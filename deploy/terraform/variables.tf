# What every provider has.

variable "name" {
  description = "Begins every name."
  type        = string
  default     = "inferflux"
}

variable "secrets_dir" {
  description = "Folder of `python deploy/nats/prepare.py --node nats-1=10.20.1.11 --node nats-2=10.20.2.11 --node nats-3=10.20.3.11 --ca-path /etc/inferflux/ca.pem --out secrets`."
  type        = string
}

variable "package" {
  description = "What pip installs on NATS nodes and API replicas: a requirement, or the URL of a wheel."
  type        = string
  default     = "inferflux"
}

variable "worker_package" {
  description = "What pip installs on workers; llama.cpp is compiled there."
  type        = string
  default     = "inferflux[llamacpp]"
}

variable "num_api_replicas" {
  type    = number
  default = 2
}

variable "num_cpu_workers" {
  type    = number
  default = 2
}

variable "num_gpu_workers" {
  type    = number
  default = 0
}

variable "settings" {
  description = "Sections of server.yaml."
  type        = any
  default     = {}
}

variable "models" {
  description = "The registry."
  type        = any
  default     = []
}

variable "model_commands" {
  description = "Shell commands that bring model files to a worker."
  type        = list(string)
  default     = []
}

variable "allowed_cidrs" {
  description = "Who may call the API."
  type        = list(string)
  default     = []
}

# What is AWS's own.

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "vpc_cidr" {
  type    = string
  default = "10.20.0.0/16"
}

variable "certificate_arn" {
  description = "ACM certificate of the load balancer."
  type        = string
}

variable "instance_types" {
  description = "One for each kind of machine."
  type        = object({ nats = string, api = string, cpu = string, gpu = string })
  default     = { nats = "c7i.large", api = "c7i.large", cpu = "c7i.4xlarge", gpu = "g6.xlarge" }
}

variable "image_ids" {
  description = "Debian 12 for all but GPU machines, which need an image with NVIDIA's driver; empty takes Debian's newest."
  type        = object({ debian = string, gpu = string })
  default     = { debian = "", gpu = "" }
}

variable "nats_disk_gb" {
  type    = number
  default = 50
}
