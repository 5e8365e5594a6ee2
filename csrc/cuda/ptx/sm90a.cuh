// Included by the headers whose instructions sm_90a alone has: a file that uses them is compiled for nothing else
// (*_sm90.cu, cmake/cuda.cmake).
#ifndef PYGPT_CUDA_PTX_SM90A_CUH
#define PYGPT_CUDA_PTX_SM90A_CUH

#if defined(__CUDA_ARCH__) && !defined(__CUDA_ARCH_FEAT_SM90_ALL)
#error "this file has instructions of sm_90a: compile it for compute_90a alone"
#endif

#endif
