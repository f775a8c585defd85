"""Watch, cut, swap. The model never knows that it is watched."""
