# A fleet on virtual machines of AWS: three NATS nodes in three zones, API replicas behind a load balancer, workers.
# Another provider takes modules/cloud-init and its own machines, network and load balancer in the place of this file.

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = var.name }
  }
}

data "aws_availability_zones" "here" {
  state = "available"
}

data "aws_ami" "debian" {
  most_recent = true
  owners      = ["136693071363"]
  filter {
    name   = "name"
    values = ["debian-12-amd64-*"]
  }
}

locals {
  zones  = slice(data.aws_availability_zones.here.names, 0, 3)
  debian = var.image_ids.debian != "" ? var.image_ids.debian : data.aws_ami.debian.id
  # Addresses are known before the machines are, because certificates name them.
  nodes = { for at in range(3) : "nats-${at + 1}" => cidrhost(cidrsubnet(var.vpc_cidr, 8, at + 1), 11) }
}

module "machines" {
  source         = "./modules/cloud-init"
  package        = var.package
  worker_package = var.worker_package
  secrets_dir    = var.secrets_dir
  nodes          = local.nodes
  settings       = var.settings
  models         = var.models
  model_commands = var.model_commands
}

resource "aws_instance" "nats" {
  for_each               = local.nodes
  ami                    = local.debian
  instance_type          = var.instance_types.nats
  subnet_id              = aws_subnet.zone[index(keys(local.nodes), each.key)].id
  private_ip             = each.value
  vpc_security_group_ids = [aws_security_group.nats.id]
  user_data_base64       = base64gzip(module.machines.node[each.key])
  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    encrypted   = true
    volume_size = var.nats_disk_gb
    volume_type = "gp3"
  }
  tags = { Name = "${var.name}-${each.key}" }
}

resource "aws_instance" "api" {
  count                  = var.num_api_replicas
  ami                    = local.debian
  instance_type          = var.instance_types.api
  subnet_id              = aws_subnet.zone[count.index % 3].id
  vpc_security_group_ids = [aws_security_group.api.id]
  user_data_base64       = base64gzip(module.machines.api)
  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    encrypted = true
  }
  tags = { Name = "${var.name}-api-${count.index + 1}" }
}

resource "aws_instance" "worker" {
  count                  = var.num_cpu_workers + var.num_gpu_workers
  ami                    = count.index < var.num_cpu_workers ? local.debian : coalesce(var.image_ids.gpu, local.debian)
  instance_type          = count.index < var.num_cpu_workers ? var.instance_types.cpu : var.instance_types.gpu
  subnet_id              = aws_subnet.zone[count.index % 3].id
  vpc_security_group_ids = [aws_security_group.worker.id]
  user_data_base64       = base64gzip(module.machines.worker)
  metadata_options {
    http_tokens = "required"
  }
  root_block_device {
    encrypted   = true
    volume_size = 100
    volume_type = "gp3"
  }
  tags = { Name = "${var.name}-worker-${count.index + 1}" }
}
