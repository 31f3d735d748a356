// Marks functions that hosts and CUDA devices have in common.
#ifndef GRADCLIP_SERVER_BACKEND_HOST_DEVICE_H_
#define GRADCLIP_SERVER_BACKEND_HOST_DEVICE_H_

#ifdef __CUDACC__
#define GRADCLIP_HOST_DEVICE __host__ __device__
#else
#define GRADCLIP_HOST_DEVICE
#endif

#endif  // GRADCLIP_SERVER_BACKEND_HOST_DEVICE_H_
