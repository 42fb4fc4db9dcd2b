"""What happens inside the Trainer component: data, model, strategy, export."""
