"""AFPKD: knowledge distillation with adaptive frequency prompting. Importing this package does not import torch."""
