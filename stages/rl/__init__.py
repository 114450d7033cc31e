"""What only PPO needs: experience, updates, snapshots of the policy."""
