"""Watch, cut, explain. The model never knows that it is watched."""
